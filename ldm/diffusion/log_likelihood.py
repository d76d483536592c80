"""The exact likelihood under the probability-flow ODE, and the bound on an image's that a latent model gives.

Along dx/dt = velocity(x, t), d log p(x) / dt = -div velocity (Chen et al. 2018, eq. 8; Song et al. 2021, eq. 39):

    log p(x0) = log N(x(1); 0, alpha(1)^2 + sigma(1)^2) + integral_{t_min}^1 div velocity dt.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Laplace, Normal
from torchdiffeq import odeint

from ldm.diffusion.objective import Denoise
from ldm.diffusion.parameterization import scale, velocity
from ldm.diffusion.path import Path
from ldm.runtime.ranges import Count, InsideUnit, Positive, checked


@dataclass(frozen=True)
class Likelihood:
    """log p of each sample."""

    nats: Tensor  # [B]
    standard_error: Tensor  # [B], of Hutchinson's estimate over its probes; 0 if exact, NaN with a single probe
    evaluations: int

    def bits_per_dim(self, dimensions: int) -> Tensor:
        """-log2 p / dimensions: [B]."""
        return -self.nats / (dimensions * math.log(2))


@checked
def log_likelihood(
    denoise: Denoise,
    path: Path,
    x0: Tensor,
    *,
    divergence: Literal["exact", "hutchinson"] = "hutchinson",
    probes: Count = 1,
    steps: Count | None = None,
    rtol: Positive = 1e-4,
    atol: Positive = 1e-4,
    t_min: InsideUnit = 1e-4,
) -> Likelihood:
    """log p(x0) in nats, x0 [B, ...], under the flow of an exact or learned denoiser.

    Args:
        divergence: "exact" sums the Jacobian's diagonal, one backward pass a dimension; "hutchinson" takes z^T J z for
                    random signs z, fixed along the way (Grathwohl et al. 2019, eq. 7): unbiased, one backward pass a
                    probe
        probes:     of hutchinson
        steps:      of a fourth-order Runge-Kutta method (the 3/8 rule), even in t; None = dopri5
        rtol:       of dopri5: relative error a step
        atol:       of dopri5: absolute error a step, in units of x and of nats
        t_min:      where the ODE starts: the state there is taken to be alpha(t_min) x0, whose volume is accounted for
    """
    count = 0
    signs = torch.randint(0, 2, (probes, *x0.shape), device=x0.device).to(x0) * 2 - 1

    def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            v = velocity(path(t), denoise(x, t)).to(x.dtype)
            change = _exact(v, x) if divergence == "exact" else _hutchinson(v, x, signs)
        return v.detach(), change

    times = torch.tensor([t_min, 1.0], dtype=torch.float64)
    method, options = "dopri5", {"dtype": torch.float64, "step_t": times[-1:]}
    if steps is not None:
        method, options = "rk4", {}
        times = torch.linspace(t_min, 1.0, steps + 1, dtype=torch.float64)
    volumes = x0.new_zeros(1 if divergence == "exact" else probes, len(x0))
    start = (x0 * path(times[0]).alpha.to(x0.dtype), volumes)
    ends, integrals = odeint(slope, start, times.to(x0.device), rtol=rtol, atol=atol, method=method, options=options)
    x1, integral = ends[-1], integrals[-1]  # [B, ...], [K, B]
    standard: Any = Normal(torch.zeros_like(x1), torch.ones_like(x1))
    spread = scale(path(times[-1])).to(x1)
    prior = standard.log_prob(x1 / spread).flatten(1).sum(1) - x0[0].numel() * spread.log()
    volume = x0[0].numel() * path(times[0]).alpha.log().to(x0)
    error = torch.full_like(prior, math.nan if divergence == "hutchinson" else 0.0)
    if len(integral) > 1:
        error = integral.std(0) / math.sqrt(len(integral))
    return Likelihood(prior + integral.mean(0) + volume, error, count)


def _exact(v: Tensor, x: Tensor) -> Tensor:
    """sum_k dv_k / dx_k of each sample, which depends on no other: [1, B]."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for k in range(v[0].numel()):
        (gradient,) = torch.autograd.grad(v.flatten(1)[:, k].sum(), x, retain_graph=True)
        total += gradient.flatten(1)[:, k]
    return total[None]


def _hutchinson(v: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """z^T J z for each probe z: [K, B]."""
    products = [torch.autograd.grad((v * z).sum(), x, retain_graph=True)[0] * z for z in signs]
    return torch.stack(products).flatten(2).sum(2)


def posterior_entropy(std: Tensor) -> Tensor:
    """H(q(z | x)) in nats of a diagonal Gaussian with this standard deviation, [B, C, h, w]: [B]."""
    return (0.5 * math.log(2 * math.pi * math.e) + std.log()).flatten(1).sum(1)


def decoder_log_likelihood(image: Tensor, x_hat: Tensor, spread: float) -> Tensor:
    """log P(image | z) in nats, [B], of uint8 images [B, 3, H, W] under a Laplace distribution around x_hat, with this
    mean absolute deviation in units of [-1, 1], discretised: a pixel's probability is that of its bin of width 2 / 255,
    the outermost bins reaching to infinity. L1 is this likelihood's error."""
    low, high = ((image.double() + offset) / 127.5 - 1 for offset in (-0.5, 0.5))
    distribution: Any = Laplace(x_hat.double(), spread)
    below = torch.where(image == 0, torch.zeros_like(low), distribution.cdf(low))
    above = torch.where(image == 255, torch.ones_like(high), distribution.cdf(high))
    # far from x_hat both cdfs round to the same number; there each bin's mass is that of an exponential density
    half = math.log(-math.expm1(-2 / (255 * spread))) + 1 / (255 * spread)  # log(2 sinh(h / spread)), h = 1 / 255
    far = distribution.log_prob((low + high) / 2) + math.log(spread) + half
    far = torch.where(image == 0, math.log(0.5) - (x_hat - high) / spread, far)
    far = torch.where(image == 255, math.log(0.5) - (low - x_hat) / spread, far)
    inside = (above - below).clamp(min=1e-300).log()
    return torch.where(above - below > 1e-9, inside, far).flatten(1).sum(1)


def bits_per_pixel_dim(decoder: Tensor, entropy: Tensor, latent: Tensor, dimensions: int) -> Tensor:
    """An upper bound on an image's -log2 P / dimensions, [B] (Vahdat et al. 2021, eq. 2, with one draw z ~ q):

        -log P(image) <= -log P(image | z) - H(q(z | image)) - log p(z),   each given the label where p(z) is

    decoder: `decoder_log_likelihood`; entropy: `posterior_entropy`; latent: log p(z) of the raw latent, whose
    normalisation, z = std latent + mean, takes the sum of log std off the normalised one's. All in nats, [B].
    """
    return -(decoder + entropy + latent) / (dimensions * math.log(2))
