"""One pass over a set of images: all that its scores need."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from ldm.metrics.features import Extractor
from ldm.metrics.statistics import Moments, Spread, Statistics


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
    """Pass over batches (images, uint8 [B, 3, H, W], and labels [B]), keeping at most `most` rows of each kind."""
    seen, kept = Collected(), {"features": Spread(most), "logits": Spread(most)}
    with torch.inference_mode():
        for image, _ in batches:
            seen.images += len(image)
            for name, value in extractor.outputs(image).items():
                if name in kept:
                    kept[name].add(value)
                if name != "logits":
                    seen.moments.setdefault(name, Moments(value.shape[1]).to(value.device)).update(value)
    seen.kept = {name: spread.take() for name, spread in kept.items() if spread.rows}
    seen.moments = {name: moments.cpu() for name, moments in seen.moments.items()}
    return seen


def merged(shares: list[Collected]) -> Collected:
    """All ranks' shares, the rows in an order that does not depend on who saw which."""
    total = reduce(Collected.__add__, shares, Collected())
    return replace(total, kept={name: rows[_place(rows).argsort()] for name, rows in total.kept.items()})


def _place(rows: Tensor) -> Tensor:
    """A number for each row, the same for the same row only."""
    return rows.double() @ torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).sqrt()
