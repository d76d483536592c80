"""Weights of the squared error in target space.

snr = (alpha / sigma)^2; gain = (sigma / det)^2 turns an error of the network's target into an error of x0, so that one
rule stated for x0 serves every parameterization.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor, Tensor], Tensor]  # (snr, gain) -> weight, all of one shape


class Unweighted:
    """1: the plain mean square of the target's error (DDPM's L_simple; the flow-matching loss)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return torch.ones_like(snr)


class MinSNR:
    """min(snr, gamma) on the x0 error (Hang et al. 2023, eq. 6-8): min(snr, gamma) / snr for eps, / (snr + 1) for v."""

    def __init__(self, *, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) * gain
