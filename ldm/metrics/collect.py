"""One pass over a set of images: all that its scores need."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from ldm.metrics.features import Extractor
from ldm.metrics.statistics import Moments, Statistics, Subset

ALL = 1 << 40  # rows


@dataclass
class Collected:
    """What a rank has seen of a set.

    Args:
        images: how many.
        moments: of "features" and, for Inception, "spatial" ones.
        kept: at most so many rows of "features", "logits".
    """

    images: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Collected") -> "Collected":
        for name, moments in other.moments.items():
            if name in self.moments:
                self.moments[name].merge(moments)
            else:
                self.moments[name] = moments
        kept = {
            name: torch.cat([part.kept[name] for part in (self, other) if name in part.kept])
            for name in self.kept.keys() | other.kept.keys()
        }
        return Collected(self.images + other.images, self.moments, kept)

    def statistics(self, name: str, card: dict[str, object]) -> Statistics:
        """Of one kind of features, with the rows that are kept of them."""
        return replace(self.moments[name].statistics(), features=self.kept.get(name), card=card)


def collect(batches: Iterable[tuple[Tensor, Tensor]], extractor: Extractor, most: int) -> Collected:
    """Pass over batches (images, uint8 [B, 3, H, W], and labels [B]), all logits and `most` features kept."""
    seen, kept = Collected(), {"features": Subset(most), "logits": Subset(ALL)}
    with torch.inference_mode():
        for image, _ in batches:
            seen.images += len(image)
            for name, value in extractor.outputs(image).items():
                if name in kept:
                    kept[name].add(value)
                if name in extractor.kinds and name not in seen.moments:
                    seen.moments[name] = Moments(value.shape[1]).to(value.device)
                if name in extractor.kinds:
                    seen.moments[name].update(value)
    seen.kept = {name: subset.take() for name, subset in kept.items() if subset.rows}
    seen.moments = {name: moments.cpu() for name, moments in seen.moments.items()}
    return seen


def merged(shares: list[Collected], most: int) -> Collected:
    """All ranks' shares, of whose features `most` are kept."""
    total = reduce(Collected.__add__, shares, Collected())
    limits = {"features": most, "logits": ALL}
    kept = {name: Subset(limits[name]) for name in total.kept}
    for name, subset in kept.items():
        subset.add(total.kept[name])
    return replace(total, kept={name: subset.take() for name, subset in kept.items()})
