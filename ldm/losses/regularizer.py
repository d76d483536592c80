"""Regularizers of the latent space: a penalty on the posterior, and transformations that decoding must commute with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.latents import DiagonalGaussian
from ldm.models.quantizer import Quantized


@dataclass(frozen=True, kw_only=True)
class NoRegularizer:
    """Of a plain autoencoder: no latent is drawn, nothing is penalised. The base of the others."""

    @property
    def variational(self) -> bool:
        """Whether the autoencoder makes a distribution, from which latents are drawn."""
        return False

    @property
    def smallest_scale(self) -> float:
        """The smallest side that `transform` makes of an image, as a share of its own."""
        return 1.0

    @property
    def quantizer(self) -> dict[str, Any] | None:
        """Of an autoencoder whose latents become codes: the argument of `Autoencoder`."""
        return None

    def penalty(self, posterior: DiagonalGaussian, x: Tensor) -> Tensor:  # noqa: ARG002
        """The penalty on a posterior [B, C, h, w] of images x [B, 3, H, W]: [B], in the units of the error of one of an
        image's elements."""
        return torch.zeros_like(posterior.mean[:, 0, 0, 0])

    def code_penalty(self, quantized: Quantized) -> Tensor:
        """The penalty on latents that became codes, likewise, [B]."""
        return torch.zeros_like(quantized.penalty)

    def transform(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of images x and latents z, what is to be reconstructed and what is decoded in training: [B, 3, H', W'] and
        [B, C, h', w']."""
        return x, z


@dataclass(frozen=True, kw_only=True)
class KL(NoRegularizer):
    """weight KL(posterior || N(0, 1)).

    Args:
        weight: 1e-6 in LDM
        per:    "image" divides the divergence's sum over the latent by the image's 3HW elements, as LDM does: it is the
                weaker on an element of the latent, the larger f is. "element" takes the mean over those elements
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
        probability: share of batches that are resized, all images of a batch alike
        min_scale:   the smallest side, as a share of the full one; sides are drawn uniformly, in whole latent positions
        rotate:      whether to turn by a random multiple of 90 degrees as well, as the paper does
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


@dataclass(frozen=True, kw_only=True)
class VQ(NoRegularizer):
    """Latents become the nearest of learned vectors: see `VectorQuantizer`, whose arguments these are.

    Args:
        weight: of its penalty, against the mean error of an element; 1 in LDM
    """

    codes: int
    beta: float = 0.25
    legacy: bool = False
    cosine: bool = False
    ema: float = 0.0
    restart: float = 0.0
    weight: float = 1.0

    @property
    def quantizer(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "weight"}
        return {"kind": "vq", **own}

    def code_penalty(self, quantized: Quantized) -> Tensor:
        return self.weight * quantized.penalty


@dataclass(frozen=True, kw_only=True)
class FSQ(NoRegularizer):
    """Each channel of a latent is rounded to one of its levels: see `FiniteScalarQuantizer`."""

    levels: Sequence[int]

    @property
    def quantizer(self) -> dict[str, Any]:
        return {"kind": "fsq", "levels": list(self.levels)}
