"""Infilling by any model: the known part of the state is replaced along the way (RePaint)."""

from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.objective import Denoise
from ldm.diffusion.path import Path
from ldm.diffusion.samplers import Noise, ddim
from ldm.runtime.ranges import Count, Share, checked

RESAMPLE = 5  # how often a step is taken, where nothing is said


@checked
def repaint(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    known: Tensor,
    hidden: Tensor,
    resample: Count = RESAMPLE,
    eta: Share = 0.0,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Walk as ddim does, but with the known part as noisy as the path has it; each step is taken `resample` times,
    with noise back to its start in between, so that both parts agree (Lugmayr et al. 2022, algorithm 1, on any path).

    Args:
        known:    the latent, [B, C, H, W], that counts where `hidden`, [B, 1, H, W] of zeros and ones, is 0
        resample: how often each step is taken, which multiplies the evaluations; 1 replaces alone
        eta:      of the steps, see `ddim`. Theirs is 1, by which a Gaussian comes out too narrow, twice as much
        noise:    x -> standard normal of x's shape
    """
    for t, s in pairwise(times):
        now, then = path(t), path(s)
        for again in reversed(range(resample)):
            x = ddim(denoise, path, x, torch.stack([t, s]), eta=eta, noise=noise)
            alpha, sigma = (1.0, 0.0) if s == 0 else (then.alpha, then.sigma)
            x = hidden * x + (1 - hidden) * (alpha * known + sigma * noise(known))
            if again:
                ratio = now.alpha / alpha
                x = ratio * x + (now.sigma**2 - (ratio * sigma) ** 2).clamp(min=0).sqrt() * noise(x)
    return x
