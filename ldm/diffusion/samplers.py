"""Samplers: pure functions (denoise, path, x, times) -> x. They know no network, no config and no training code.

`times` is decreasing, [N + 1], float64 (so that coefficients are exact whatever the type of x); x [B, C, H, W] is at
times[0]. A sampler that draws noise takes it as a function of the current x: the caller decides where it comes from.

A step that ends at t = 0 lands on the predicted x0. On the linear path that is Euler's step; on a variance-preserving
one, where sigma falls like sqrt(t), Euler's step would leave half of the last noise in the sample.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.objective import Denoise
from ldm.diffusion.parameterization import velocity
from ldm.diffusion.path import Path

Noise = Callable[[Tensor], Tensor]  # x -> standard normal of x's shape


def euler(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """First-order steps of the probability-flow ODE: x += (s - t) dx/dt; N evaluations."""
    for t, s in pairwise(times):
        prediction = denoise(x, t)
        x = x + (s - t) * velocity(path(t), prediction) if s > 0 else prediction.x0
    return x


def heun(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Second-order steps (Karras et al. 2022, algorithm 1); t = 0 is never evaluated; 2N - 1 evaluations."""
    for t, s in pairwise(times):
        prediction = denoise(x, t)
        if s == 0:
            return prediction.x0
        slope = velocity(path(t), prediction)
        slope_there = velocity(path(s), denoise(x + (s - t) * slope, s))
        x = x + (s - t) * 0.5 * (slope + slope_there)
    return x


def ddim(
    denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, eta: float = 0.0, noise: Noise = torch.randn_like
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z (Song et al. 2021, eq. 12); N evaluations.

    n^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2), eq. 16 for any path.
    eta = 0 is deterministic; eta = 1 is the ancestral posterior of DDPM.
    """
    for t, s in pairwise(times):
        now, then = path(t), path(s)
        prediction = denoise(x, t)
        ratio = (now.alpha / then.alpha) * then.sigma
        variance = eta**2 * (then.sigma / now.sigma) ** 2 * (now.sigma**2 - ratio**2)
        direction = (then.sigma**2 - variance).clamp(min=0).sqrt()
        x = then.alpha * prediction.x0 + direction * prediction.eps
        if eta > 0 and s > 0:
            x = x + variance.clamp(min=0).sqrt() * noise(x)
    return x


def ddpm(denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, noise: Noise = torch.randn_like) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, with the posterior variance of eq. 7); N evaluations."""
    return ddim(denoise, path, x, times, eta=1.0, noise=noise)
