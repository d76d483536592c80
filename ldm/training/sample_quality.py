"""What a validation of stage 2 measures of the averaged weights' samples."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ldm.data.cache_reader import CachedMoments
from ldm.data.encoded_images import FewMoments
from ldm.generate.generator import Generator
from ldm.latents import mean_of
from ldm.metrics.classifier import Classifier
from ldm.metrics.features import Extractor
from ldm.metrics.frechet import frechet_distance
from ldm.metrics.quality_stamp import QUALITY, QualityStamp
from ldm.metrics.statistics import Moments, Statistics
from ldm.runtime.ranks import mean_over_ranks
from ldm.runtime.wrong import shown
from ldm.training.examples import Examples

TIMES = 10  # as many latents as samples are decoded for a reference, if there are


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What judges samples; at least one of features and classifier.

    features:   of the Frechet distance; None = no distance
    reference:  statistics of real images' features; None = of the cache's training latents, decoded
    classifier: None = no accuracy
    """

    features: Extractor | None
    reference: Statistics | None
    classifier: Classifier | None

    def __post_init__(self) -> None:
        if self.reference is None:
            return
        if self.features is None:
            raise ValueError("reference= is of a Frechet distance: pass features=, too")
        if len(self.reference.mean) != self.features.num_features:
            raise ValueError(
                f"reference= has {len(self.reference.mean)} features an image, features= {self.features.num_features}: "
                "name statistics of the same network"
            )


class SampleQuality(Callback):
    """Logs val/fd, the Frechet distance of samples, and val/class_accuracy, the share that a classifier recognises.

    The ranks share the samples, whose noise and labels are the same at each validation. Their weights are the averaged
    ones: it is the validation's first batch at whose end they are drawn.

    Args:
        generator:  how the network is sampled
        num:        samples over all ranks, at least 2
        batch_size: samples a rank at once
        judges:     what they are judged by
        latents:    the cache's training latents, for a reference
        examples:   what the samples are told
    """

    def __init__(
        self,
        *,
        generator: Generator,
        num: int,
        batch_size: int,
        judges: Judges,
        latents: CachedMoments | FewMoments,
        examples: Examples,
    ) -> None:
        self.generator, self.num, self.batch_size = generator, num, batch_size
        self.judges, self.latents, self.examples = judges, latents, examples
        self.reference = judges.reference
        self.found: dict[str, float] = {}

    def check_goes_on(self, run: Path) -> None:
        """ValueError if the run's earlier figures depend on something else, so that no curve could hold both."""
        if not (run / QUALITY).exists():
            return
        before, now = QualityStamp.read(run / QUALITY).model_dump(), json.loads(json.dumps(self.stamp()))
        for key, value in now.items():
            if before.get(key) != value:
                raise ValueError(
                    f"{run} has figures of samples with {key}={shown(before.get(key))}, beside which none with "
                    f"{shown(value)} can stand: leave it as it was, or choose another run="
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            QualityStamp(**self.stamp()).write(Path(trainer.default_root_dir) / QUALITY)

    def stamp(self) -> dict[str, Any]:
        """What the numbers depend on."""
        features, classifier = self.judges.features, self.judges.classifier
        decoded = f"{self._decoded()} training latents, decoded"
        given = None if self.judges.reference is None else self.judges.reference.card
        return {
            "samples": self.num,
            "features": None if features is None else features.identity,
            "reference": None if features is None else given or decoded,
            "classifier": None if classifier is None else classifier.identity,
            **self.generator.sampling.describe(),
            "guidance": self.generator.guidance.scale,
            "seed": self.generator.seed,
            "weights": "ema",
        }

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0:  # at the validation's end the averaged weights may have been swapped out already
            with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
                self.found = self.measured(pl_module.device, trainer.global_rank, trainer.world_size)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log_dict({f"val/{name}": value for name, value in self.found.items()})

    def measured(self, device: torch.device, rank: int = 0, world: int = 1) -> dict[str, float]:
        """fd and class_accuracy, as far as somebody judges them, of this rank's share and the others'."""
        model, features, classifier = self.generator.model, self.judges.features, self.judges.classifier
        model.autoencoder.to(device)  # type: ignore[union-attr]
        if features is not None:
            features.to(device)
        right, moments = torch.zeros((), device=device), Moments(1 if features is None else features.num_features)
        moments.to(device)
        for indices in shares(self.num, rank, world, self.batch_size):
            told, wanted = self.examples.of([i % self.num for i in indices])
            images = self.generator.images(indices, told)[0]
            ours = [k for k, i in enumerate(indices) if i < self.num]  # what lies beyond keeps the ranks in step
            if features is not None and ours:
                moments.update(features(images[ours]))
            if classifier is not None and ours:
                right += (classifier.predict(images[ours]).to(device) == wanted[ours]).sum()
        found = {}
        if features is not None:
            self.reference = self.reference or self._reference(features, device, rank, world)
            found["fd"] = frechet_distance(moments.statistics(), self.reference)
        if classifier is not None:
            found["class_accuracy"] = float(mean_over_ranks(right)) * world / self.num
        return found

    def _decoded(self) -> int:
        return min(TIMES * self.num, len(self.latents))

    def _reference(self, features: Extractor, device: torch.device, rank: int, world: int) -> Statistics:
        """Of training images as the autoencoder gives them back: what samples could be at best."""
        model, moments = self.generator.model, Moments(features.num_features).to(device)
        own = range(rank, self._decoded(), world)
        for start in range(0, len(own), self.batch_size):
            cached = self.latents.__getitems__([(0, i) for i in own[start : start + self.batch_size]]).moments
            moments.update(features(model.decode(model.stats.normalize(mean_of(cached.to(device))))))
        return moments.statistics()


def shares(num: int, rank: int, world: int, batch_size: int) -> Iterator[list[int]]:
    """This rank's batches of the indices 0 ... num - 1, every world-th of them; some go beyond num, so that all ranks
    have equally many, as a sharded network needs."""
    own = [rank + world * i for i in range(-(-num // world))]
    for start in range(0, len(own), batch_size):
        yield own[start : start + batch_size]
