"""EMA, pictures and curves."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from ldm.files import atomic_write
from ldm.generate import Generator
from ldm.images import grid, save_png


class EMA(WeightAveraging):
    """Exponential moving average of all parameters, with LDM's warm-up: decay = min(decay, (1 + n) / (10 + n)).

    Validation runs on the average, and a checkpoint's state_dict is the average.
    """

    def __init__(self, decay: float) -> None:
        def update(average: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
            n = int(num_averaged)
            torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=update)  # buffers are copied, not averaged


def save_grid(trainer: Trainer, module: LightningModule, name: str, image: Tensor) -> None:
    """Write RUN/name/BATCHES.png and hand the picture to wandb if it is among the loggers."""
    save_png(Path(trainer.default_root_dir) / name / f"{module.batches_seen:08d}.png", image)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [image.permute(1, 2, 0).cpu().numpy()])


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
            images = [tensor[: rows * columns].unflatten(0, (rows, columns)) for tensor in (batch[0], outputs)]
            interleaved = torch.stack(images, dim=1).flatten(0, 2)  # a row of images, a row of reconstructions, ...
            save_grid(trainer, pl_module, "reconstructions", grid(interleaved, columns))


class SampleGrid(Callback):
    """Samples at fixed noise and labels, from the averaged weights, once a validation: a row a class, up to ten."""

    def __init__(self, generator: Generator, num_classes: int, columns: int = 8) -> None:
        rows = min(num_classes, 10) if num_classes > 1 else 4
        self.generator, self.columns = generator, columns
        self.labels = (torch.arange(rows) % num_classes).repeat_interleave(columns)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # not at the validation's end, where the averaged weights may have been swapped out already
        if batch_idx == 0 and trainer.is_global_zero:
            self.generator.autoencoder.to(pl_module.device)
            images, _evaluations = self.generator.images(range(len(self.labels)), self.labels.to(pl_module.device))
            save_grid(trainer, pl_module, "samples", grid(images, self.columns))


class Curves(Callback):
    """After each validation, joins the CSV logs of all starts of this run into metrics.csv and draws each metric."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            for logger in trainer.loggers:
                logger.save()
            write_curves(folder)


def write_curves(folder: Path) -> None:
    """RUN/csv/version_*/metrics.csv -> RUN/metrics.csv and RUN/curves.png; a later start overrides an earlier one."""
    rows: dict[int, dict[str, str]] = defaultdict(dict)
    starts = sorted((folder / "csv").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    for start in starts:
        with open(start, newline="") as file:
            new = [row for row in csv.DictReader(file) if row["step"]]
        if new:  # what an interrupted start logged beyond the checkpoint that this one resumed from is void
            first = min(int(row["step"]) for row in new)
            rows = defaultdict(dict, {step: row for step, row in rows.items() if step < first})
        for row in new:
            rows[int(row["step"])] |= {key: value for key, value in row.items() if value and key != "epoch"}
    if not rows:
        return
    names = ["step", *sorted({key for row in rows.values() for key in row} - {"step"})]
    with atomic_write(folder / "metrics.csv") as binary:
        lines = [",".join(names)] + [",".join(rows[step].get(name, "") for name in names) for step in sorted(rows)]
        binary.write(("\n".join(lines) + "\n").encode())
    _draw(folder / "curves.png", rows, [n for n in names if "/" in n])


def _draw(path: Path, rows: dict[int, dict[str, str]], names: list[str]) -> None:
    from matplotlib.figure import Figure

    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.split("/", 1)[1]].append(name)
    columns = min(4, len(groups))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(groups) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(groups) // columns), columns, squeeze=False).flatten()
    for axis in axes[len(groups) :]:
        axis.axis("off")
    for axis, (title, members) in zip(axes, sorted(groups.items()), strict=False):
        for name in members:
            points = [(step + 1, float(row[name])) for step, row in sorted(rows.items()) if name in row]
            axis.plot(*zip(*points, strict=True), label=name.split("/")[0], marker="." if len(points) < 20 else None)
        axis.set_title(title)
        axis.set_xlabel("batches")
        axis.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=80)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
