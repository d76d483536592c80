"""Objective: path x parameterization x weighting x time sampler. Its loss and its denoiser sit side by side so that
training and sampling cannot drift apart."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.parameterization import (
    PARAMETERIZATIONS,
    Parameterization,
    Prediction,
    determinant,
    solve,
    target_coefficients,
)
from ldm.diffusion.path import Path
from ldm.diffusion.times import TimeSampler
from ldm.diffusion.weighting import Weighting

Net = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [B,C,H,W], t [B], y [B]) -> [B,C,H,W]
Denoise = Callable[[Tensor, Tensor], Prediction]  # (x_t [B,C,H,W], t []) -> Prediction


def expand(t: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to broadcast over `like`."""
    return t.reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learned, and how to read it back."""

    path: Path
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler

    def __post_init__(self) -> None:
        if self.parameterization not in PARAMETERIZATIONS:
            known = ", ".join(PARAMETERIZATIONS)
            raise ValueError(f"objective.parameterization must be one of {known}, not {self.parameterization!r}")
        c = self.path(torch.ones((), dtype=torch.float64))
        if determinant(c, *target_coefficients(c, self.parameterization)).abs() < 1e-6:
            raise ValueError(
                f"objective.parameterization={self.parameterization} can't tell x0 at t = 1 on a path that ends at "
                "alpha = 0: use v, velocity or x0"
            )

    def loss(self, net: Net, x0: Tensor, y: Tensor) -> Tensor:
        """Weighted mean square of the network's error at random times, [B]; x0 [B, C, H, W], y [B].

        Times and noise come from the global generator.
        """
        t = self.time_sampler(len(x0), x0.device)  # [B]
        eps = torch.randn_like(x0)  # [B, C, H, W]
        c = self.path(expand(t, x0))  # [B, 1, 1, 1] each
        a, b = target_coefficients(c, self.parameterization)
        error = net(c.alpha * x0 + c.sigma * eps, t, y) - (a * x0 + b * eps)
        snr, gain = (c.alpha / c.sigma) ** 2, (c.sigma / determinant(c, a, b)) ** 2
        return (self.weighting(snr, gain) * error.square()).flatten(1).mean(1)

    def denoiser(self, net: Net, y: Tensor) -> Denoise:
        """Wrap `net`, conditioned on y [B], as (x_t, t) -> Prediction(x0, eps)."""

        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            c = self.path(t)
            output = net(x_t, t.to(x_t.dtype).expand(len(x_t)), y)
            return solve(c, *target_coefficients(c, self.parameterization), x_t, output)

        return denoise
