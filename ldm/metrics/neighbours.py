"""Whether samples are copies: how near each is to a training image, compared with how near held-out images are."""

from typing import Any

import torch
from torch import Tensor


class Neighbours:
    """The nearest of a stream of training images to each of some images, in feature space.

    Args:
        samples:  features [N, D]
        held_out: features [M, D] of images that the model has not seen
        images:   the samples, uint8 [N, 3, H, W]
        most:     how many pairs of a sample and its nearest training image are kept to be drawn, the closest first
    """

    def __init__(self, samples: Tensor, held_out: Tensor, images: Tensor, most: int = 32) -> None:
        self.queries, self.num, self.most = torch.cat([samples, held_out]).double(), len(samples), most
        self.nearest = torch.full((len(self.queries),), float("inf"), dtype=torch.float64)
        self.images: Tensor | None = images
        self.pairs: dict[int, tuple[float, Tensor]] = {}  # by sample: the distance, and both images

    def update(self, features: Tensor, image: Tensor) -> None:
        """Features [B, D] and images, uint8 [B, 3, H, W]."""
        assert self.images is not None
        distance, index = torch.cdist(self.queries, features.double().cpu()).min(1)  # [Q]
        nearer = distance < self.nearest
        self.nearest = torch.where(nearer, distance, self.nearest)
        # a pair that is among the closest in the end is among them as soon as its training image is seen
        for i in self.nearest[: self.num].argsort()[: self.most].tolist():
            if nearer[i]:
                self.pairs[i] = float(distance[i]), torch.stack([self.images[i], image[index[i]].cpu()])
        self._drop()

    def merge(self, other: "Neighbours") -> "Neighbours":
        """Add what another rank has seen."""
        self.nearest = torch.minimum(self.nearest, other.nearest)
        for i, pair in other.pairs.items():
            self.pairs[i] = min(pair, self.pairs.get(i, pair), key=lambda one: one[0])
        self._drop()
        return self

    def _drop(self) -> None:
        self.pairs = dict(sorted(self.pairs.items(), key=lambda item: item[1][0])[: self.most])

    def settle(self) -> "Neighbours":
        """Drop the images that are not drawn, before it is sent to other ranks."""
        self.images = None
        return self

    def compute(self) -> dict[str, Any]:
        """value: the share of samples that are nearer to a training image than all but 1 % of held-out images are: 0.01
        for new images from the same distribution, and about c + 0.01 where a share c are copies.

        chance_of_being_nearer: the chance that a sample is nearer than a held-out image (Meehan et al. 2020; ties count
        half): 0.5 for new images. Both also rise where samples are less various than the data, as guidance makes them;
        the picture tells which it is.
        """
        from scipy.stats import mannwhitneyu  # which takes a second to import

        samples, held_out = self.nearest[: self.num], self.nearest[self.num :]
        pairs = len(samples) * len(held_out)
        return {
            "value": float((samples < held_out.quantile(0.01)).double().mean()),
            "chance_of_being_nearer": float(mannwhitneyu(held_out.numpy(), samples.numpy()).statistic) / pairs,
            "nearest_distance": float(samples.min()),
            "median_distance": float(samples.median()),
            "median_distance_of_held_out_images": float(held_out.median()),
        }

    def rows(self) -> tuple[Tensor, int]:
        """The closest pairs, uint8 [2 P, 3, H, W], each a sample and then its nearest training image; and how many of
        these images make a row of a grid."""
        pairs = torch.cat([pair for _, pair in self.pairs.values()])
        return pairs, min(8, len(pairs))
