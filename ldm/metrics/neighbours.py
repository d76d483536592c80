"""Whether samples are copies: how near each is to a training image, beside how near held-out images are."""

from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor


class Neighbours:
    """The nearest of a stream of training images to each of some images, in feature space.

    Args:
        samples: features [N, D].
        held_out: features [M, D] of images that the model has not seen.
        shown: the first samples' images, uint8 [S, 3, H, W], each drawn beside its `most` nearest.
    """

    def __init__(self, samples: Tensor, held_out: Tensor, shown: Tensor, most: int = 7) -> None:
        self.queries, self.num, self.images = torch.cat([samples, held_out]).double(), len(samples), shown
        self.nearest = torch.full((len(self.queries),), float("inf"), dtype=torch.float64)
        self.most = most
        self.shown: list[list[tuple[float, Tensor]]] = [[] for _ in shown]

    def update(self, features: Tensor, image: Tensor) -> None:
        """Features [B, D] and images, uint8 [B, 3, H, W]."""
        found = torch.cdist(self.queries, features.double().cpu())  # [Q, B]
        self.nearest = torch.minimum(self.nearest, found.amin(1))
        for row, best in enumerate(self.shown):
            near = found[row].argsort()[: self.most].tolist()
            self._add(best, [(float(found[row, i]), image[i].cpu().clone()) for i in near])

    def merge(self, other: "Neighbours") -> "Neighbours":
        """Add what another rank has seen."""
        self.nearest = torch.minimum(self.nearest, other.nearest)
        for best, theirs in zip(self.shown, other.shown, strict=True):
            self._add(best, theirs)
        return self

    def _add(self, best: list[tuple[float, Tensor]], more: list[tuple[float, Tensor]]) -> None:
        best[:] = sorted([*best, *more], key=lambda pair: pair[0])[: self.most]

    def compute(self) -> dict[str, Any]:
        """value: the chance that a sample is nearer to the training images than a held-out image is (Meehan et al.
        2020; ties count half): 0.5 in a healthy model, 1 in one that copies."""
        samples, held_out = self.nearest[: self.num], self.nearest[self.num :]
        pairs = len(samples) * len(held_out)
        return {
            "value": float(mannwhitneyu(held_out.numpy(), samples.numpy()).statistic) / pairs,
            "median_distance": float(samples.median()),
            "median_distance_of_held_out_images": float(held_out.median()),
        }

    def rows(self) -> tuple[Tensor, int]:
        """uint8 [S (most + 1), 3, H, W], each sample before its nearest training images; and a row's length."""
        rows = [
            torch.stack([image, *(near for _, near in best)])
            for image, best in zip(self.images, self.shown, strict=True)
        ]
        return torch.cat(rows), len(rows[0])
