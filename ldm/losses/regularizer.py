"""What keeps the latent space in shape: a penalty on the posterior, and transformations that it must commute with."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.latents import DiagonalGaussian


@dataclass(frozen=True, kw_only=True)
class NoRegularizer:
    """A plain autoencoder: nothing is drawn, nothing is penalised. Also what the others specialise."""

    @property
    def variational(self) -> bool:
        """Whether the autoencoder emits a distribution."""
        return False

    @property
    def smallest_scale(self) -> float:
        """The least side that `transform` makes of an image, relative to its own."""
        return 1.0

    def penalty(self, posterior: DiagonalGaussian, x: Tensor) -> Tensor:  # noqa: ARG002
        """In the units of the reconstruction error per image element: [B]."""
        return torch.zeros_like(posterior.mean[:, 0, 0, 0])

    def transform(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is decoded in training, and the image that it must become: [B, 3, H', W'] and [B, C, h', w']."""
        return x, z


@dataclass(frozen=True, kw_only=True)
class KL(NoRegularizer):
    """weight x KL(posterior || N(0, 1)).

    Args:
        weight: 1e-6 in LDM.
        per: "image" divides the divergence's sum over the latent by the image's 3HW elements: LDM's balance, whose
            strength per latent element falls with f. "element" takes its mean over the latent's elements.
    """

    weight: float
    per: Literal["image", "element"] = "image"

    def __post_init__(self) -> None:
        if self.per not in ("image", "element"):
            raise ValueError(f"regularizer.per must be image or element, not {self.per!r}")
        if self.weight < 0:
            raise ValueError(f"regularizer.weight={self.weight} must not be negative")

    @property
    def variational(self) -> bool:
        return True

    def penalty(self, posterior: DiagonalGaussian, x: Tensor) -> Tensor:
        kl = posterior.kl().flatten(1)
        return self.weight * (kl.sum(1) / x[0].numel() if self.per == "image" else kl.mean(1))


@dataclass(frozen=True, kw_only=True)
class ScaleEquivariance(KL):
    """KL, and latents that may be resized: decode(resize(z)) must be resize(x) (EQ-VAE, Kouzelis et al. 2025, eq. 4).

    Args:
        probability: share of batches that are resized, all images of one alike.
        min_scale: the least side, relative to the full one; drawn uniformly among the latent's whole sizes.
        rotate: also turn by a random multiple of 90 degrees, as the paper does.
    """

    probability: float = 0.5
    min_scale: float = 0.25
    rotate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.probability <= 1 and 0 < self.min_scale <= 1):
            raise ValueError("regularizer.probability must lie in [0, 1] and regularizer.min_scale in (0, 1]")

    @property
    def smallest_scale(self) -> float:
        return self.min_scale

    def transform(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        if torch.rand(()) >= self.probability:
            return x, z
        height, width = z.shape[-2:]
        factor = x.shape[-1] // width
        side = int(torch.randint(math.ceil(self.min_scale * width), width + 1, ()))
        size = (max(1, round(height * side / width)), side)
        if side < width:
            z = F.interpolate(z, size, mode="bicubic", antialias=True)
            x = F.interpolate(x, (size[0] * factor, size[1] * factor), mode="bicubic", antialias=True)
        turns = int(torch.randint(4, ())) if self.rotate else 0
        return x.rot90(turns, (-2, -1)), z.rot90(turns, (-2, -1))
