"""Weightings: from the mean square error of the network's target to the loss, sample by sample.

All rules but the first are weights w(snr) of the error of x0, so that they mean the same whatever the network
regresses: snr = (alpha / sigma)^2, and gain = (sigma / det)^2 turns an error of the target into one of x0. The error of
eps is snr times that of x0, so that a weight that was published for eps appears here times snr.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.runtime.ranges import Count, NonNegative, Positive, checked

Weighting = Callable[[Tensor, Tensor, Tensor], Tensor]  # (error, snr, gain) -> loss, [B] each


class Unweighted:
    """The error itself (DDPM's L_simple; the flow-matching loss)."""

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return error


class MinSNR:
    """w = min(snr, gamma) (Hang et al. 2023, eq. 6-8): min(snr, gamma) / snr for eps, / (snr + 1) for v."""

    @checked
    def __init__(self, *, gamma: Positive = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) * gain * error


class TruncatedSNR:
    """w = max(snr, 1): the larger of x0's error and eps' (Salimans & Ho 2022, eq. 9): errors count at pure noise, too,
    where a student of few steps makes nearly all of its image."""

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(min=1) * gain * error


class Adaptive:
    """error / (error + floor)^power, whose denominator is held fixed: large errors do not drown the others (Geng et al.
    2025, eq. 22, of the mean square over a sample's numbers, where the paper has their sum: floor is to be divided by
    their number likewise).

    Args:
        power: 0 is the error itself, 1 gives each sample nearly the same gradient
        floor: keeps the denominator from 0
    """

    @checked
    def __init__(self, *, power: NonNegative = 1.0, floor: Positive = 1e-3) -> None:
        self.power, self.floor = power, floor

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return error / (error.detach() + self.floor) ** self.power


class SoftMinSNR:
    """w = snr gamma / (snr + gamma): min-SNR without its corner (Crowson et al. 2024, section 3.3)."""

    @checked
    def __init__(self, *, gamma: Positive = 4.0) -> None:
        self.gamma = gamma

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * self.gamma / (snr + self.gamma) * gain * error


class P2:
    """w = snr / (k + snr)^gamma: 1 / (k + snr)^gamma for eps (Choi et al. 2022, eq. 8)."""

    @checked
    def __init__(self, *, k: Positive = 1.0, gamma: NonNegative = 1.0) -> None:
        self.k, self.gamma = k, gamma

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma * gain * error


class Sigmoid:
    """w = snr sigmoid(bias - log snr): sigmoid(bias - log snr) for eps (Kingma & Gao 2023, section 6)."""

    def __init__(self, *, bias: float = 0.0) -> None:
        self.bias = bias

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return snr / (1 + snr * math.exp(-self.bias)) * gain * error


class EDM:
    """w = 1 + snr (Karras et al. 2022, table 1, for latents of unit variance): every v is weighted alike."""

    def __call__(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        return (1 + snr) * gain * error


class LearnedUncertainty(nn.Module):
    """loss / exp(u) + u, u(log snr) learned with the network (Karras et al. 2024, eq. 21-22): each noise level's loss
    tends to 1 + u, so that none drowns the others' gradients.

    u is a magnitude-preserving linear map of magnitude-preserving Fourier features (eq. 47 and 75), as in EDM2:

        u = (w / |w|) . sqrt(2) cos(2 pi (f c + phase)),   c = log(sigma / alpha) / 4

    with f from N(0, 1), phase from U(0, 1), and w learned from N(0, 1). In training w is set to the norm sqrt(features)
    before each use, since only its direction counts: else it would grow, and learn ever more slowly (eq. 66).

    Args:
        base:     the weighting that it balances
        features: number of Fourier features
    """

    @checked
    def __init__(self, *, base: Weighting, features: Count = 128) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=generator))
        self.frequencies: Tensor
        self.phases: Tensor
        self.out = nn.Linear(features, 1, bias=False)
        with torch.no_grad():
            self.out.weight.normal_(generator=generator)

    def forward(self, error: Tensor, snr: Tensor, gain: Tensor) -> Tensor:
        u = self.uncertainty(snr)
        return self.base(error, snr, gain) / u.exp() + u

    def uncertainty(self, snr: Tensor) -> Tensor:
        """u, [B], in float32 also under autocast: it is as large as the error's logarithm."""
        noise = -snr.clamp(1e-12, 1e12).log() / 8  # log(sigma / alpha) / 4, EDM's c_noise
        features = math.sqrt(2) * torch.cos(noise[:, None] * self.frequencies + self.phases)
        if self.training:
            with torch.no_grad():
                self.out.weight.copy_(F.normalize(self.out.weight) * math.sqrt(len(self.phases)))
        with torch.autocast(snr.device.type, enabled=False):
            return F.linear(features, F.normalize(self.out.weight))[:, 0]
