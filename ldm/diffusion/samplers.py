"""Samplers: pure functions (denoise, path, x, times) -> x. They know no network, no config and no training code.

`times` is decreasing, [N + 1], float64 (so that coefficients are exact whatever the type of x); x [B, C, H, W] is at
times[0], and what is returned is at times[-1]. A sampler that draws noise takes it as a function of the current x: the
caller decides where it comes from. N evaluations of the denoiser, where nothing else is said.

A last step to t = 0 ends at the data. The ancestral, exponential and stochastic families land on the predicted x0,
which is their own step's limit. The solvers of the probability-flow ODE go there by a step of their own order or one
less (see `ode`), as landing on x0 is Euler's step and would leave them with its error. On a path that keeps noise at
t = 0 (`LinearPath` with sigma_min) they need one evaluation more, to find x0 in it.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

from ldm.diffusion.exponential import Step
from ldm.diffusion.objective import Denoise
from ldm.diffusion.ode import Flow, euler_step, heun_step, midpoint_step, rk4_step, solve, third_order_step
from ldm.diffusion.parameterization import velocity
from ldm.diffusion.path import Coefficients, Path, log_snr, time_at
from ldm.runtime.ranges import NonNegative, Positive, Share, checked

Noise = Callable[[Tensor], Tensor]  # x -> standard normal of x's shape

# the ancestral family


@checked
def ddim(
    denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, eta: Share = 0.0, noise: Noise = torch.randn_like
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z (Song et al. 2021, eq. 12).

    n^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2), eq. 16 for any path.
    At t = 0, where sigma is 0, x_s is x0. LDM's last step ends before that, at its timestep 0, t = 1 / T: so does this
    one on a grid with last=first_timestep.

    Args:
        eta:   0 is deterministic, of order 1; 1 is the ancestral posterior of DDPM
        noise: x -> standard normal of x's shape
    """
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


@checked
def ddpm(
    denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, eta: Share = 1.0, noise: Noise = torch.randn_like
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, with the posterior variance of eq. 7, times eta^2)."""
    return ddim(denoise, path, x, times, eta=eta, noise=noise)


# the probability-flow ODE, dx/dt = velocity, by textbook methods; `ode` says how they walk and how they end


def euler(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Order 1: x += (s - t) dx/dt. The last step lands on the predicted x0."""
    return solve(Flow.regular(denoise, path, x, times), euler_step, last=euler_step)


def midpoint(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Order 2, the slope half-way; 2N evaluations."""
    return solve(Flow.regular(denoise, path, x, times), midpoint_step, last=midpoint_step)


@checked
def heun(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    churn: NonNegative = 0.0,
    churn_range: tuple[float, float] = (0.05, 50.0),
    churn_noise: NonNegative = 1.0,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Order 2, the mean of the slopes at both ends, but in the last step the slope half-way; 2N evaluations (Karras et
    al. 2022, algorithm 2, whose last step is Euler's).

    Args:
        churn:       their S_churn: before each step sigma / alpha is raised by a factor of
                     1 + min(churn / N, sqrt(2) - 1), by fresh noise; 0 is the ODE
        churn_range: between which values of sigma / alpha that is done; never to above what it is at times[0], since
                     the denoiser may know nothing noisier
        churn_noise: the fresh noise's standard deviation, in units of the one that belongs to the path
        noise:       x -> standard normal of x's shape
    """
    factor = 1 + min(churn / (len(times) - 1), math.sqrt(2) - 1)
    flow = Flow.regular(denoise, path, x, times)

    def raised(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x and t after algorithm 2's lines 5 and 6."""
        now = flow.path(t)
        if churn == 0 or not churn_range[0] <= now.sigma / now.alpha <= churn_range[1]:
            return x, t
        higher = torch.minimum(time_at(flow.path, log_snr(now) - 2 * math.log(factor)), flow.times[0])
        then = flow.path(higher)
        grow = then.alpha / now.alpha
        fresh = (then.sigma**2 - (grow * now.sigma) ** 2).clamp(min=0).sqrt()
        return grow * x + fresh * churn_noise * noise(x), higher

    x = flow.x
    for t, s in pairwise(flow.times):
        x, start = raised(x, t)
        x = flow.step(x, start, s, heun_step, last=midpoint_step)
    return x


def rk4(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """Order 4, the classical Runge-Kutta method, but in the last step one of order 3; 4N - 1 evaluations."""
    return solve(Flow.regular(denoise, path, x, times), rk4_step, last=third_order_step)


@checked
def dopri5(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    ratio_min: Positive = 1e-3,
) -> Tensor:
    """Order 5 with steps of its own (torchdiffeq), of which there are as many as the tolerance needs: count the
    evaluations by wrapping denoise. Of times it uses the first alone.

    Args:
        rtol:      relative error a step
        atol:      absolute error a step, in units of x
        ratio_min: sigma / alpha at which it lands on x0, which is away from the ODE's end by a share of about half the
                   square of that
    """
    flow = Flow.regular(denoise, path, x, times)

    def slope(t: Tensor, x_t: Tensor) -> Tensor:
        return flow.slope(x_t, t).to(x_t.dtype)

    end = time_at(flow.path, torch.tensor(-2 * math.log(ratio_min), dtype=torch.float64))
    span = torch.stack([flow.times[0].cpu(), end]).to(x.device)  # where torchdiffeq wants it
    options = {"dtype": torch.float64, "step_t": span[-1:]}  # it would step past the end, and interpolate
    x = odeint(slope, flow.x, span, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    return flow.denoise(x, span[-1]).x0


# exponential integrators in h, the step in log(alpha / sigma): only the denoiser's curvature costs accuracy


def dpmpp_2m(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (2M): order 2 from one evaluation a step and the one before (Lu et al. 2022, algorithm 2)."""
    before: Step | None = None
    for t, s in pairwise(times):
        data = denoise(x, t).x0
        if s == 0:
            return data
        step = Step(path(t), path(s), data, before)
        x = step.to(x, step.extrapolated())
        before = step
    return x


def dpmpp_2m_sde(denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, noise: Noise = torch.randn_like) -> Tensor:
    """SDE-DPM-Solver++ (2M), midpoint form (Lu et al. 2022, eq. 18): the ancestral process with steps of order 2."""
    before: Step | None = None
    for t, s in pairwise(times):
        data = denoise(x, t).x0
        if s == 0:
            return data
        step = Step(path(t), path(s), data, before)
        now, then, share = step.now, step.then, -torch.expm1(-2 * step.h)  # of the noise's variance that is drawn anew
        x = then.sigma / now.sigma * torch.exp(-step.h) * x + then.alpha * share * step.extrapolated()
        x = x + then.sigma * share.sqrt() * noise(x)
        before = step
    return x


def unipc(denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor:
    """UniPC-2, B2(h): DPM-Solver++ (2M) as the predictor, each of whose steps is corrected by the evaluation that the
    next one makes anyway (Zhao et al. 2023, algorithm 1): order 3 for the price of 2M."""
    before: Step | None = None
    start = x
    for t, s in pairwise(times):
        data = denoise(x, t).x0
        if s == 0:
            return data
        if before is not None:
            x = before.to(start, before.corrected(data))
        step = Step(path(t), path(s), data, before)
        start, x = x, step.to(x, step.extrapolated())
        before = step
    return x


# jumps of few-step students


@checked
def jump(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    renoise: bool = False,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps, the ends that the network predicts for the jump from t to s: by an average
    velocity where it has learned one (`Objective.average`), else DDIM's step.

    Args:
        renoise: jump to the data each time, and from there to s by fresh noise: multistep consistency sampling (Song et
                 al. 2023, algorithm 1)
        noise:   x -> standard normal of x's shape
    """
    for t, s in pairwise(times):
        prediction = denoise(x, t, times[-1] if renoise else s)
        if s == 0:
            return prediction.x0
        then = path(s)
        x = then.alpha * prediction.x0 + then.sigma * (noise(x) if renoise else prediction.eps)
    return x


# stochastic flows

DIFFUSIONS: dict[str, Callable[[Tensor, Coefficients], Tensor]] = {
    "sigma": lambda t, c: c.sigma,
    "constant": lambda t, c: torch.ones_like(t),
    "bell": lambda t, c: torch.sin(math.pi * t) ** 2,
}


@checked
def euler_maruyama(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    diffusion: Literal["sigma", "constant", "bell"] = "sigma",
    strength: NonNegative = 1.0,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """The SDE with the ODE's marginals, for any path (Ma et al. 2024, eq. 5 and 8):

        dx = (velocity + (w / 2) eps / sigma) dt + sqrt(w) dW, backward in t;   score = -eps / sigma

    Args:
        diffusion: w / strength: sigma(t); constant, 1; or bell, sin^2(pi t)
        strength:  of the noise; 0 is Euler's method
        noise:     x -> standard normal of x's shape
    """
    for t, s in pairwise(times):
        c, prediction = path(t), denoise(x, t)
        if s == 0:
            return prediction.x0
        w = strength * DIFFUSIONS[diffusion](t, c)
        drift = velocity(c, prediction) + 0.5 * w / c.sigma * prediction.eps
        x = x + (s - t) * drift + (w * (t - s)).sqrt() * noise(x)
    return x
