"""What the network is told for the samples that a training draws."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.conditioning.labels import Labels
from ldm.data.cache_reader import CachedMoments
from ldm.data.encoded_images import FewMoments, Latents
from ldm.diffusion.checks import apart
from ldm.generate.generator import Generator
from ldm.generate.model import LatentDiffusionModel
from ldm.latents import mean_of
from ldm.training.progress import seed_from

NAME = 40  # characters of a caption beside its row


class Examples:
    """Conditions by the samples' indices: labels in turn, or what held-out latents tell, likewise in turn.

    Args:
        model:   that is trained
        latents: held out, or of training where none are, with what the condition reads
        seed:    of what is drawn for the conditions
    """

    def __init__(self, model: LatentDiffusionModel, latents: CachedMoments | FewMoments, seed: int) -> None:
        self.model, self.latents, self.seed = model, latents, seed
        self.of_labels = isinstance(model.conditioning, Labels)

    def of(self, indices: Sequence[int]) -> tuple[Condition, Tensor]:
        """What some samples are told, in their order, and the classes that they should be of, told or not."""
        model = self.model
        if self.of_labels:
            labels = torch.tensor([i % len(model.class_names) for i in indices], device=model.device)
            return model.told(labels), labels
        batch = self.latents.__getitems__([(0, i % len(self.latents)) for i in indices])
        x0 = model.stats.normalize(mean_of(batch.moments.to(model.device)))
        told = {name: part.to(model.device) for name, part in batch.told.items()}
        drawn = [part.to(model.device) for part in self._drawn(indices)]
        labels = batch.labels.to(model.device)
        condition, _ = model.conditioning.condition(x0, labels, model.null, told, *drawn)
        return condition, labels

    def _drawn(self, indices: Sequence[int]) -> list[Tensor]:
        """Each sample's own, whatever batch it is in, on the CPU."""
        rows = []
        with apart():
            for index in indices:
                seed_from(self.seed, index)
                rows.append(self.model.conditioning.draw(1, self.model.latent_shape, torch.device("cpu")))
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    def names(self, rows: int) -> list[str]:
        """Of the first samples' conditions: classes or captions; [] where they have none."""
        names = list(self.model.class_names)
        if self.of_labels:
            return names[:rows] if len(names) > 1 else []
        said = self.latents.captions([i % len(self.latents) for i in range(rows)])
        return [f"{text[: NAME - 3]}..." if len(text) > NAME else text for text in said] if any(said) else []


def examples_of(generator: Generator, latents: Latents) -> Examples:
    """What the samples are told that a training draws."""
    return Examples(generator.model, latents.few("val", generator.model.conditioning), generator.seed)
