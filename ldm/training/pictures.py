"""Pictures of a run: to RUN/NAME/BATCHES.png, and to the loggers that show pictures."""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ldm.conditioning.labels import Labels
from ldm.generate.generator import Generator
from ldm.generate.model import LatentDiffusionModel
from ldm.images import Key, annotate, grid, save_png, to_x
from ldm.runtime.loggers import show
from ldm.training.examples import Examples
from ldm.training.sharding import is_sharded

COLUMNS = 8  # of a grid of samples
log = logging.getLogger(__name__)


def save_grid(trainer: Trainer, module: LightningModule, name: str, image: Tensor) -> None:
    """Write RUN/name/BATCHES.png and hand the picture to the loggers, beside the scalars of the same batch."""
    save_png(Path(trainer.default_root_dir) / name / f"{module.batches_seen:08d}.png", image)
    show(trainer.loggers, name, image, module.batches_seen - 1)  # type: ignore[operator, arg-type]


class ReconstructionGrid(Callback):
    """Pairs of validation images and their reconstructions, from the averaged weights, once a validation."""

    def __init__(self, pairs: int = 16) -> None:
        self.pairs = pairs

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            columns = min(8, len(batch[0]))
            rows = max(1, min(self.pairs, len(batch[0])) // columns)
            pair = (batch[0], outputs["image_hat"])
            images = [tensor[: rows * columns].unflatten(0, (rows, columns)) for tensor in pair]
            interleaved = torch.stack(images, dim=1).flatten(0, 2)  # a row of images, a row of reconstructions, ...
            picture = annotate(grid(interleaved, columns), rows=["image", "reconstruction"] * rows)
            save_grid(trainer, pl_module, "reconstructions", picture)


class LogitMaps(Callback):
    """Where the discriminator sees real (blue) and reconstructed (red) patches: its logits over validation images
    (upper row) and over their reconstructions (lower row), once a validation after it has started."""

    def __init__(self, columns: int = 8) -> None:
        self.columns = columns

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero and pl_module.loss.disc_trains(pl_module.batches_seen):  # type: ignore[operator, union-attr]
            rows = []
            for image in (batch[0][: self.columns], outputs["image_hat"][: self.columns]):  # apart, as in training
                with torch.no_grad():
                    logits = pl_module.discriminator(to_x(image).to(pl_module.dtype)).float()  # type: ignore[operator]
                rows.append(overlay(image, logits))
            picture = grid(torch.cat(rows), len(rows[0]))
            picture = annotate(picture, rows=["image", "reconstruction"], key=logit_key())
            save_grid(trainer, pl_module, "logits", picture)


def overlay(image: Tensor, logits: Tensor) -> Tensor:
    """Colours over grey: uint8 [B, 3, H, W] and logits [B, 1, H', W'] -> uint8 [B, 3, H, W]; full colour at |logit| 1,
    where hinge losses end."""
    heat = F.interpolate(logits, image.shape[-2:], mode="bilinear").clamp(-1, 1)  # [B, 1, H, W]
    color = torch.cat([(-heat).clamp(min=0), torch.zeros_like(heat), heat.clamp(min=0)], dim=1)
    grey = image.float().mean(1, keepdim=True).expand_as(image) / 255
    return (255 * torch.lerp(grey, color, 0.6 * heat.abs())).round().to(torch.uint8)


def logit_key() -> Key:
    """The colours of `overlay` on middle grey, from a logit of -1 to 1."""
    logits = torch.linspace(-1, 1, 64)[None, None, None]  # [1, 1, 1, 64]
    grey = torch.full((1, 3, 1, 64), 128, dtype=torch.uint8)
    return Key(overlay(grey, logits)[0, :, 0], "seen as reconstructed (logit -1)", "as real (1)")


def rows_of(model: LatentDiffusionModel) -> int:
    """Rows of a grid of samples, of COLUMNS each."""
    classes = len(model.class_names)
    return 8 if not isinstance(model.conditioning, Labels) else min(classes, 10) if classes > 1 else 4


class SampleGrid(Callback):
    """Samples at fixed noise and conditions, from the averaged weights, once a validation: a row a class, or a held-out
    image's condition, up to ten."""

    def __init__(self, generator: Generator, examples: Examples, columns: int = COLUMNS) -> None:
        rows = rows_of(generator.model)
        self.generator, self.examples, self.columns = generator, examples, columns
        self.names = examples.names(rows)
        self.rows = torch.arange(rows).repeat_interleave(columns).tolist()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # not at the validation's end, where the averaged weights may have been swapped out already
        together = is_sharded(self.generator.model.net)  # no rank holds a network of its own
        if batch_idx == 0 and (together or trainer.is_global_zero):
            self.generator.model.autoencoder.to(pl_module.device)  # type: ignore[union-attr]
            images = self._drawn(pl_module)
        if batch_idx == 0 and trainer.is_global_zero and images is not None:
            save_grid(trainer, pl_module, "samples", annotate(grid(images, self.columns), rows=self.names))

    def _drawn(self, pl_module: LightningModule) -> Tensor | None:
        """The samples, uint8 [N, 3, H, W]; None, said in the log, of a network that makes none."""
        try:
            told, _ = self.examples.of(self.rows)
            return self.generator.images(range(len(self.rows)), told)[0]
        except ValueError as error:
            log.warning("no samples are drawn: %s", error)
            return None
