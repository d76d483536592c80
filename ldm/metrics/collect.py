"""One pass over a set of images, which collects all that its scores need."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import islice

import torch
from torch import Tensor

from ldm.metrics.features import Extractor
from ldm.metrics.statistics import Moments, Statistics, Subset, pixel_hashes, pixels_fingerprint


@dataclass
class Collected:
    """What a rank has seen of a set.

    Args:
        images:  how many
        pixels:  the sum of their hashes, which is equal for equal images in any order
        labels:  how many images have each
        moments: by kind of features: "features" and, of Inception, "spatial"
        kept:    some rows of "features", all rows of "logits"
    """

    images: int = 0
    pixels: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    moments: dict[str, Moments] = field(default_factory=dict)
    kept: dict[str, Subset] = field(default_factory=dict)

    def merge(self, other: "Collected") -> "Collected":
        """Add what another rank has seen."""
        for name, moments in other.moments.items():
            if name in self.moments:
                self.moments[name].merge(moments)
            else:
                self.moments[name] = moments
        for name, subset in other.kept.items():
            self.kept.setdefault(name, Subset(subset.most)).join(subset.settle().keys, subset.rows)
        self.images, self.pixels = self.images + other.images, self.pixels + other.pixels
        self.labels = self.labels + other.labels
        return self

    def statistics(self, name: str, card: dict[str, object]) -> Statistics:
        """The statistics of one kind of features, with the rows that are kept; `card` says what they depend on."""
        rows = self.kept[name].take() if name in self.kept else None
        return replace(self.moments[name].statistics(), features=rows, card=card)

    @property
    def pixels_fingerprint(self) -> str:
        """Sixteen hexadecimal digits, equal for equal images in any order."""
        return pixels_fingerprint(self.pixels)


def collect(
    batches: Iterable[tuple[Tensor, Tensor]],
    extractor: Extractor,
    most: int,
    logits: bool = False,
    positions: Iterator[int] | None = None,
) -> Collected:
    """Pass over a rank's share of a set.

    Args:
        batches:   images, uint8 [B, 3, H, W], and labels [B]
        extractor: of the features
        most:      rows of features that are kept
        logits:    whether all rows of logits are kept
        positions: of the images in the set, so that logits are kept in its order; None = in the order of pixel hashes
    """
    seen, limits = Collected(), {"features": most} | ({"logits": 1 << 40} if logits else {})
    with torch.inference_mode():
        for image, label in batches:
            hashes, places = pixel_hashes(image), list(islice(positions or (), len(image)))
            seen.images += len(image)
            seen.pixels += sum(hashes.tolist())
            seen.labels.update(label.tolist())
            for name, value in extractor.outputs(image).items():
                if name in limits:
                    keys = hashes if positions is None or name != "logits" else torch.tensor(places)
                    seen.kept.setdefault(name, Subset(limits[name])).add(keys, value.float())
                if name in extractor.kinds and name not in seen.moments:
                    seen.moments[name] = Moments(value.shape[1]).to(value.device)
                if name in extractor.kinds:
                    seen.moments[name].update(value)
    for subset in seen.kept.values():
        subset.settle().seen.clear()
    seen.moments = {name: moments.cpu() for name, moments in seen.moments.items()}
    return seen


def merged(shares: list[Collected]) -> Collected:
    """The shares of all ranks as one."""
    return reduce(Collected.merge, shares, Collected())


def sampling(labels: Counter[int]) -> str:
    """How classes were sampled, as far as labels tell; "unknown" where all are 0, as they are where there are none."""
    if set(labels) <= {0}:
        return "unknown"
    without_gaps = min(labels) == 0 and max(labels) == len(labels) - 1
    names = f"0 ... {max(labels)}" if without_gaps else str(sorted(labels))
    spread = max(labels.values()) - min(labels.values())
    return f"{'equally many' if spread < 2 else 'not equally many'} of the classes {names}"
