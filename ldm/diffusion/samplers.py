"""Samplers: pure functions (denoise, path, x, times) -> x. They know no network, no config and no training code.

`times` is decreasing, [N + 1], float64 (so that coefficients are exact whatever the type of x); x [B, C, H, W] is at
times[0]. A sampler that draws noise takes it as a function of the current x: the caller decides where it comes from.
N evaluations of the denoiser, where nothing else is said.

A step that ends at t = 0 lands on the predicted x0. On the linear path that is Euler's step; on a variance-preserving
one, where sigma falls like sqrt(t), Euler's step would leave half of the last noise in the sample.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

from ldm.diffusion.objective import Denoise
from ldm.diffusion.parameterization import velocity
from ldm.diffusion.path import Coefficients, Path, log_snr, time_at

Noise = Callable[[Tensor], Tensor]  # x -> standard normal of x's shape

# the ancestral family


def ddim(
    denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, eta: float = 0.0, noise: Noise = torch.randn_like
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z (Song et al. 2021, eq. 12).

    n^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2), eq. 16 for any path.
    eta = 0 is deterministic, of order 1; eta = 1 is the ancestral posterior of DDPM.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"sampler.function.eta={eta} must lie in [0, 1]")
    for t, s in pairwise(times):
        now, then = path(t), path(s)
        prediction = denoise(x, t)
        if s == 0:
            return prediction.x0
        ratio = (now.alpha / then.alpha) * then.sigma
        variance = eta**2 * (then.sigma / now.sigma) ** 2 * (now.sigma**2 - ratio**2)
        direction = (then.sigma**2 - variance).clamp(min=0).sqrt()
        x = then.alpha * prediction.x0 + direction * prediction.eps
        if eta > 0:
            x = x + variance.clamp(min=0).sqrt() * noise(x)
    return x


def ddpm(
    denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, eta: float = 1.0, noise: Noise = torch.randn_like
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, with the posterior variance of eq. 7, times eta^2)."""
    return ddim(denoise, path, x, times, eta=eta, noise=noise)


# the probability-flow ODE, dx/dt = velocity, by textbook methods


def euler(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Order 1: x += (s - t) dx/dt."""
    for t, s in pairwise(times):
        prediction = denoise(x, t)
        x = x + (s - t) * velocity(path(t), prediction) if s > 0 else prediction.x0
    return x


def midpoint(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Order 2, the slope half-way; 2N - 1 evaluations."""
    for t, s in pairwise(times):
        prediction = denoise(x, t)
        if s == 0:
            return prediction.x0
        half = 0.5 * (t + s)
        there = denoise(x + (half - t) * velocity(path(t), prediction), half)
        x = x + (s - t) * velocity(path(half), there)
    return x


def heun(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.05, 50.0),
    churn_noise: float = 1.0,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Order 2, the mean of the slopes at both ends; t = 0 is never evaluated (Karras et al. 2022, algorithm 2); 2N - 1
    evaluations.

    churn: their S_churn: before each step sigma / alpha is raised by a factor of 1 + min(churn / N, sqrt(2) - 1), with
    fresh noise of standard deviation churn_noise, where it lies within churn_range.
    """
    if churn < 0:
        raise ValueError(f"sampler.function.churn={churn} must not be negative")
    factor = 1 + min(churn / (len(times) - 1), math.sqrt(2) - 1)
    for t, s in pairwise(times):
        now = path(t)
        if churn > 0 and churn_range[0] <= now.sigma / now.alpha <= churn_range[1]:
            t = time_at(path, log_snr(now) - 2 * math.log(factor))  # algorithm 2's t-hat
            up = path(t)
            grow = up.alpha / now.alpha
            x = grow * x + (up.sigma**2 - (grow * now.sigma) ** 2).clamp(min=0).sqrt() * churn_noise * noise(x)
        prediction = denoise(x, t)
        if s == 0:
            return prediction.x0
        slope = velocity(path(t), prediction)
        slope_there = velocity(path(s), denoise(x + (s - t) * slope, s))
        x = x + (s - t) * 0.5 * (slope + slope_there)
    return x


def rk4(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Order 4, the classical Runge-Kutta method; 4N - 3 evaluations."""
    for t, s in pairwise(times):
        prediction = denoise(x, t)
        if s == 0:
            return prediction.x0
        h, half = s - t, 0.5 * (t + s)
        k1 = velocity(path(t), prediction)
        k2 = velocity(path(half), denoise(x + 0.5 * h * k1, half))
        k3 = velocity(path(half), denoise(x + 0.5 * h * k2, half))
        k4 = velocity(path(s), denoise(x + h * k3, s))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def dopri5(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    ratio_min: float = 1e-3,
) -> Tensor:
    """Order 5 with steps of its own (torchdiffeq), from times[0] to where sigma / alpha = ratio_min; there it lands on
    x0. Of times, it walks the first alone; count the evaluations by wrapping denoise."""

    def slope(t: Tensor, x_t: Tensor) -> Tensor:
        return velocity(path(t), denoise(x_t, t)).to(x_t.dtype)

    end = time_at(path, torch.tensor(-2 * math.log(ratio_min), dtype=torch.float64))
    span = torch.stack([times[0].cpu(), end]).to(x.device)  # where torchdiffeq wants it
    options = {"dtype": torch.float64, "step_t": span[-1:]}  # it would step past the end, and interpolate
    x = odeint(slope, x, span, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    return denoise(x, span[-1]).x0


# exponential integrators in h, the step in log(alpha / sigma): only the denoiser's curvature costs accuracy


def dpmpp_2m(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (2M): order 2 from one evaluation a step and the one before (Lu et al. 2022, algorithm 2)."""
    before: _Step | None = None
    for t, s in pairwise(times):
        data = denoise(x, t).x0
        if s == 0:
            return data
        step = _Step(path(t), path(s), data, before)
        x = step.to(x, step.extrapolated())
        before = step
    return x


def dpmpp_2m_sde(denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, noise: Noise = torch.randn_like) -> Tensor:
    """SDE-DPM-Solver++ (2M), midpoint form (Lu et al. 2022, eq. 18): the ancestral process with steps of order 2."""
    before: _Step | None = None
    for t, s in pairwise(times):
        data = denoise(x, t).x0
        if s == 0:
            return data
        step = _Step(path(t), path(s), data, before)
        now, then, gone = step.now, step.then, -torch.expm1(-2 * step.h)  # share of the noise that is exchanged
        x = then.sigma / now.sigma * torch.exp(-step.h) * x + then.alpha * gone * step.extrapolated()
        x = x + then.sigma * gone.sqrt() * noise(x)
        before = step
    return x


def unipc(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """UniPC-2, B2(h): DPM-Solver++ (2M) as the predictor, each of whose steps is corrected by the evaluation that the
    next one makes anyway (Zhao et al. 2023, algorithm 1): order 3 for the price of 2M."""
    before: _Step | None = None
    start = x
    for t, s in pairwise(times):
        data = denoise(x, t).x0
        if s == 0:
            return data
        if before is not None:
            x = before.to(start, before.corrected(data))
        step = _Step(path(t), path(s), data, before)
        start, x = x, step.to(x, step.extrapolated())
        before = step
    return x


class _Step:
    """A step of h in log(alpha / sigma) with the x0 predicted at its start, and the step before it."""

    def __init__(self, now: Coefficients, then: Coefficients, data: Tensor, before: "_Step | None") -> None:
        self.now, self.then, self.data = now, then, data
        self.h = 0.5 * (log_snr(then) - log_snr(now))  # infinite from alpha = 0
        self.rise: Tensor | None = None  # of x0 over a step, seen from the step before
        if before is not None:
            self.ratio = before.h / self.h
            self.rise = (data - before.data) / self.ratio

    def to(self, x: Tensor, data: Tensor) -> Tensor:
        """The exact step for a constant x0."""
        return self.then.sigma / self.now.sigma * x - self.then.alpha * torch.expm1(-self.h) * data

    def extrapolated(self) -> Tensor:
        """x0 half-way, from here and the step before."""
        return self.data if self.rise is None else self.data + 0.5 * self.rise

    def corrected(self, there: Tensor) -> Tensor:
        """x0 averaged over the step, with the prediction at its end: weights that make powers of h exact."""
        if self.rise is None:
            return self.data + 0.5 * (there - self.data)
        whole = torch.expm1(-self.h)  # phi_1(-h), times -h
        first = whole / -self.h - 1
        b1, b2 = first / whole, 2 * (first / -self.h - 0.5) / whole
        past = (b1 - b2) / (1 + self.ratio)
        return self.data + past * self.rise + (b1 - past) * (there - self.data)


# stochastic flows

DIFFUSIONS: dict[str, Callable[[Tensor, Coefficients], Tensor]] = {
    "sigma": lambda t, c: c.sigma,
    "constant": lambda t, c: torch.ones_like(t),
    "bell": lambda t, c: torch.sin(math.pi * t) ** 2,
}


def euler_maruyama(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    diffusion: Literal["sigma", "constant", "bell"] = "sigma",
    strength: float = 1.0,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """The SDE with the ODE's marginals, for any path (Ma et al. 2024, eq. 5 and 8):

        dx = (velocity + (w / 2) eps / sigma) dt + sqrt(w) dW, backward in t;   score = -eps / sigma

    diffusion: w / strength is sigma(t), 1 or sin^2(pi t); strength 0 is Euler's method.
    """
    if strength < 0:
        raise ValueError(f"sampler.function.strength={strength} must not be negative")
    if diffusion not in DIFFUSIONS:
        raise ValueError(f"sampler.function.diffusion must be one of {', '.join(DIFFUSIONS)}, not {diffusion!r}")
    for t, s in pairwise(times):
        c, prediction = path(t), denoise(x, t)
        if s == 0:
            return prediction.x0
        w = strength * DIFFUSIONS[diffusion](t, c)
        drift = velocity(c, prediction) + 0.5 * w / c.sigma * prediction.eps
        x = x + (s - t) * drift + (w * (t - s)).sqrt() * noise(x)
    return x
