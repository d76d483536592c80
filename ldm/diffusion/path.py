"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 data and t = 1 noise.

The flow-matching papers run time the other way (their t = 0 is noise); nowhere else is that mentioned here.
A path is any callable from a tensor of times in [0, 1], of any shape, to `Coefficients` of that shape.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """x_t = alpha x0 + sigma eps,   dx_t/dt = dalpha x0 + dsigma eps."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


Path = Callable[[Tensor], Coefficients]


class LinearPath:
    """alpha = 1 - t, sigma = t: the optimal-transport flow (Lipman et al. 2023, eq. 20; Liu et al. 2023, eq. 1)."""

    def __call__(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(1.0 - t, t, -one, one)


class CosinePath:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving (Salimans & Ho 2022, section 4)."""

    def __call__(self, t: Tensor) -> Coefficients:
        half_pi = 0.5 * math.pi
        alpha, sigma = torch.cos(half_pi * t), torch.sin(half_pi * t)
        return Coefficients(alpha, sigma, -half_pi * sigma, half_pi * alpha)


class BetaTablePath:
    """The variance-preserving path of a table of betas (Ho et al. 2020, eq. 4): alpha^2 = abar, sigma^2 = 1 - abar.

    abar(i / T) = prod_{j < i} (1 - beta_j) exactly; between, log abar is a cubic Hermite spline, smooth enough for
    second-order samplers. Time t = (i + 1) / T is LDM's and diffusers' integer timestep i, and abar(0) = 1.
    At t = 0, where sigma has no derivative, dsigma is infinite.

    schedule: "linear" spaces beta evenly; "scaled_linear" spaces sqrt(beta) evenly (LDM calls that one "linear").
    """

    def __init__(
        self,
        *,
        schedule: Literal["linear", "scaled_linear"],
        num_steps: int,
        beta_start: float,
        beta_end: float,
    ) -> None:
        if schedule not in ("linear", "scaled_linear"):
            raise ValueError(f"schedule must be 'linear' or 'scaled_linear', not {schedule!r}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"need 0 < beta_start <= beta_end < 1, not {beta_start} and {beta_end}")
        power = 1.0 if schedule == "linear" else 2.0
        ends = (beta_start ** (1 / power), beta_end ** (1 / power))
        beta = torch.linspace(*ends, num_steps, dtype=torch.float64) ** power
        self.log_abar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0)])  # [T + 1]
        (self.slope,) = torch.gradient(self.log_abar, edge_order=2)  # d log abar / d(t T), [T + 1]

    def __call__(self, t: Tensor) -> Coefficients:
        value, slope = self.log_abar.to(t.device), self.slope.to(t.device)
        num_steps = len(value) - 1
        position = t.double() * num_steps
        left = position.floor().long().clamp(0, num_steps - 1)
        u, rise = position - left, value[left + 1] - value[left]
        m0, m1 = slope[left], slope[left + 1]
        log_abar = value[left] + u**2 * (3 - 2 * u) * rise + u * (1 - u) * ((1 - u) * m0 - u * m1)
        dlog_abar = num_steps * (6 * u * (1 - u) * rise + (1 - u) * (1 - 3 * u) * m0 - u * (2 - 3 * u) * m1)
        alpha, sigma = torch.exp(0.5 * log_abar), torch.sqrt(-torch.expm1(log_abar))
        dalpha = 0.5 * alpha * dlog_abar
        dsigma = -0.5 * torch.exp(log_abar) * dlog_abar / sigma
        return Coefficients(*(c.to(t.dtype) for c in (alpha, sigma, dalpha, dsigma)))
