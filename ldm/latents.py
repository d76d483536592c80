"""The contract between the two stages: what an autoencoder emits, what the cache stores, what the U-Net sees.

posterior   DiagonalGaussian(mean, logvar), [B, C, h, w] each
moments     cat(mean, std), [B, 2C, h, w]: raw, as cached on disk in fp16
latent      a posterior sample, normalised per channel to zero mean and unit variance, in a whitened cache uncorrelated
            over channels, too, [B, C, h, w]
codes       of an autoencoder that quantises, where a model is to make these: whole numbers [B, 1, h, w], which stand
            for moments, their mean and the latent alike, and are never normalised
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)  # as in LDM


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, wider types stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(logvar))), with the log-variance clamped to [-30, 20] as in LDM."""

    mean: Tensor  # [B, C, h, w]
    logvar: Tensor  # [B, C, h, w]

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> "DiagonalGaussian":
        """Split an encoder's output, [B, 2C, h, w], into mean and clamped log-variance."""
        mean, logvar = at_least_float32(parameters).chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    @classmethod
    def point(cls, mean: Tensor) -> "DiagonalGaussian":
        """All but a point mass: what a plain autoencoder emits, with the smallest std there is, exp(-15)."""
        mean = at_least_float32(mean)
        return cls(mean, torch.full_like(mean, LOGVAR_RANGE[0]))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self) -> Tensor:
        """Draw mean + std * eps, [B, C, h, w], from the global generator."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def moments(self) -> Tensor:
        """Return cat(mean, std), [B, 2C, h, w]."""
        return torch.cat([self.mean, self.std], dim=1)

    def kl(self) -> Tensor:
        """KL(self || N(0, 1)) in nats of each latent element: [B, C, h, w]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


def sample_moments(moments: Tensor, eps: Tensor | None = None) -> Tensor:
    """Draw a raw posterior sample, [B, C, h, w], from cached moments, [B, 2C, h, w] of any float type, in float32; by
    the standard normal eps, or the global generator. Codes are returned as they are, long."""
    if holds_codes(moments):
        return moments.long()
    mean, std = moments.float().chunk(2, dim=1)
    return mean + std * (torch.randn_like(mean) if eps is None else eps)


def mean_of(moments: Tensor) -> Tensor:
    """The posteriors' means, float32 [B, C, h, w], of cached moments; codes as they are, long."""
    return moments.long() if holds_codes(moments) else moments.float().chunk(2, dim=1)[0]


def holds_codes(latents: Tensor) -> bool:
    """Whether they are codes: whole numbers."""
    return not latents.is_floating_point()


@dataclass(frozen=True)
class LatentStats:
    """Of raw posterior samples over the whole training set: what normalises them.

    Args:
        mean:      per channel, [C]
        std:       per channel, [C]
        whitening: the symmetric inverse square root of the channels' correlation, [C, C], by which a whitened latent is
                   multiplied (ZCA-cor: Kessy, Lewin & Strimmer 2018); None: channels stay as correlated as they are
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor | None = None

    @classmethod
    def of(cls, card: dict[str, Any]) -> "LatentStats":
        """Of what `card` returned."""
        whitening = card.get("whitening")
        return cls(
            torch.tensor(card["mean"]),
            torch.tensor(card["std"]),
            None if whitening is None else torch.tensor(whitening),
        )

    def card(self) -> dict[str, Any]:
        """As plain data."""
        whitening = None if self.whitening is None else self.whitening.tolist()
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "whitening": whitening}

    def to(self, device: torch.device) -> "LatentStats":
        whitening = None if self.whitening is None else self.whitening.to(device)
        return LatentStats(self.mean.to(device), self.std.to(device), whitening)

    def normalize(self, z: Tensor) -> Tensor:
        """Raw [B, C, h, w] -> latent with zero mean and unit variance per channel; whitened, uncorrelated."""
        if holds_codes(z):
            return z
        latent = (z - self.mean.to(z)[:, None, None]) / self.std.to(z)[:, None, None]
        return latent if self.whitening is None else _mixed(self.whitening, latent)

    def denormalize(self, latent: Tensor) -> Tensor:
        """Latent [B, C, h, w] -> raw, as the decoder wants it."""
        if holds_codes(latent):
            return latent
        if self.whitening is not None:
            latent = _mixed(torch.linalg.inv(self.whitening.cpu().double()), latent)
        return latent * self.std.to(latent)[:, None, None] + self.mean.to(latent)[:, None, None]

    @property
    def log_scale(self) -> float:
        """log |dz / d latent| of one place: what a density of latents differs by from one of raw samples, in nats."""
        scale = self.std.double().log().sum()
        return float(
            scale if self.whitening is None else scale - torch.linalg.slogdet(self.whitening.cpu().double())[1]
        )


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """Each place's channels [C] of x [B, C, h, w], multiplied by a matrix [C, C], in x's type, autocast or not."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum("dc,bchw->bdhw", matrix.to(x), x)
