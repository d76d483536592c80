"""What the network regresses, a x0 + b eps, and the 2x2 solve that turns it back into both ends of the path."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ldm.diffusion.path import Coefficients

Parameterization = Literal["x0", "eps", "v", "velocity"]
PARAMETERIZATIONS = get_args(Parameterization)


class Prediction(NamedTuple):
    """The two ends of the path that a network output implies."""

    x0: Tensor  # [B, C, H, W]
    eps: Tensor  # [B, C, H, W]


def scale(c: Coefficients) -> Tensor:
    """sqrt(alpha^2 + sigma^2): the standard deviation of x_t for latents of unit variance; 1 where it is preserved."""
    return (c.alpha.square() + c.sigma.square()).sqrt()


def angle(c: Coefficients) -> Tensor:
    """(2 / pi) atan(sigma / alpha): the noise level, from 0 at the data to 1 at the noise, on any path."""
    return (2 / math.pi) * torch.atan2(c.sigma, c.alpha)


def target_coefficients(c: Coefficients, parameterization: Parameterization) -> tuple[Tensor, Tensor]:
    """Return (a, b) of the regression target a x0 + b eps.

    v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D), divided by sqrt(alpha^2 + sigma^2), which is 1 on their
    paths; so it has unit variance on every path, and is minus EDM's F on VE (Karras et al. 2022, eq. 7-8).
    velocity = dx_t/dt (Lipman et al. 2023, eq. 8).
    """
    if parameterization == "x0":
        return c.alpha.new_ones(c.alpha.shape), c.alpha.new_zeros(c.alpha.shape)
    if parameterization == "eps":
        return c.alpha.new_zeros(c.alpha.shape), c.alpha.new_ones(c.alpha.shape)
    if parameterization == "v":
        return -c.sigma / scale(c), c.alpha / scale(c)
    return c.dalpha, c.dsigma


def secants(now: Coefficients, then: Coefficients, span: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the average velocity a x0 + b eps from `then`, `span` earlier, to now: slopes of secants, not tangents.

    So the solve with them has x_t and the state at `then` on one path.
    """
    return (now.alpha - then.alpha) / span, (now.sigma - then.sigma) / span


def determinant(c: Coefficients, a: Tensor, b: Tensor) -> Tensor:
    """Determinant of [[alpha, sigma], [a, b]]: -sigma for x0, alpha for eps, 1 for v on a variance-preserving path."""
    return c.alpha * b - c.sigma * a


def solve(c: Coefficients, a: Tensor, b: Tensor, x_t: Tensor, output: Tensor) -> Prediction:
    """Invert [x_t; output] = [[alpha, sigma], [a, b]] [x0; eps] (Cramer's rule)."""
    det = determinant(c, a, b)
    return Prediction((b * x_t - c.sigma * output) / det, (c.alpha * output - a * x_t) / det)


def velocity(c: Coefficients, prediction: Prediction) -> Tensor:
    """dx_t/dt = dalpha x0 + dsigma eps: the probability-flow ODE's right-hand side."""
    return c.dalpha * prediction.x0 + c.dsigma * prediction.eps
