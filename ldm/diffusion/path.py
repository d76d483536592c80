"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 data and t = 1 noise.

The flow-matching papers run time the other way (their t = 0 is noise); nowhere else is that mentioned here.
A path is any callable from a tensor of times in [0, 1], of any shape, to `Coefficients` of that shape. Apart from the
scale of x_t, a path is its log-SNR as a function of time: to shift it, or to sample on another path, is to change the
time at which a log-SNR is reached (`time_at`).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm.runtime.ranges import Fraction, InsideUnit, Positive, Several, checked


class Coefficients(NamedTuple):
    """x_t = alpha x0 + sigma eps,   dx_t/dt = dalpha x0 + dsigma eps."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


Path = Callable[[Tensor], Coefficients]


class LinearPath:
    """alpha = 1 - t, sigma = sigma_min + (1 - sigma_min) t: the optimal-transport flow (Lipman et al. 2023, eq. 20).

    Args:
        sigma_min: noise that is left at t = 0; 0 is rectified flow (Liu et al. 2023, eq. 1)
    """

    @checked
    def __init__(self, *, sigma_min: Fraction = 0.0) -> None:
        self.sigma_min = sigma_min

    def __call__(self, t: Tensor) -> Coefficients:
        one, rise = torch.ones_like(t), 1.0 - self.sigma_min
        return Coefficients(1.0 - t, self.sigma_min + rise * t, -one, rise * one)


class CosinePath:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving (Salimans & Ho 2022, section 4)."""

    def __call__(self, t: Tensor) -> Coefficients:
        half_pi = 0.5 * math.pi
        alpha, sigma = torch.sin(half_pi * (1.0 - t)), torch.sin(half_pi * t)  # alpha is 0 at t = 1, to the bit
        return Coefficients(alpha, sigma, -half_pi * sigma, half_pi * alpha)


class VPPath:
    """alpha^2 = exp(-int_0^t beta), beta rising linearly, sigma^2 = 1 - alpha^2 (Song et al. 2021, eq. 33).

    At t = 0, where sigma has no derivative, dsigma is infinite.

    Args:
        beta_min: at t = 0, a rate by t
        beta_max: at t = 1
    """

    @checked
    def __init__(self, *, beta_min: Positive = 0.1, beta_max: Positive = 20.0) -> None:
        if beta_min > beta_max:
            raise ValueError(f"beta_min={beta_min} must be at most beta_max={beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def __call__(self, t: Tensor) -> Coefficients:
        rise = self.beta_max - self.beta_min
        log_abar = -self.beta_min * t - 0.5 * rise * t**2
        return _variance_preserving(log_abar, -self.beta_min - rise * t)


class BetaTablePath:
    """The variance-preserving path of a table of betas (Ho et al. 2020, eq. 4): alpha^2 = abar, sigma^2 = 1 - abar.

    abar(i / T) = prod_{j < i} (1 - beta_j) exactly; between, log abar is a cubic Hermite spline, smooth enough for
    second-order samplers. Time t = (i + 1) / T is LDM's and diffusers' integer timestep i, and abar(0) = 1.
    At t = 0, where sigma has no derivative, dsigma is infinite.

    Args:
        schedule:          "linear" spaces beta evenly; "scaled_linear" spaces sqrt(beta) evenly (LDM calls that one
                           "linear"); "cosine" has abar(t) = cos^2 ((t + 0.008) / 1.008 pi / 2), and no beta above 0.999
                           (Nichol & Dhariwal 2021)
        num_steps:         T, at least 2
        beta_start:        the first beta of the first two schedules, a rate by timestep
        beta_end:          their last
        zero_terminal_snr: rescale the table so that alpha(1) = 0 (Lin et al. 2024, algorithm 1). Log abar then ends at
                           minus infinity, so that the spline interpolates alpha instead
    """

    @checked
    def __init__(
        self,
        *,
        schedule: Literal["linear", "scaled_linear", "cosine"],
        num_steps: Several,
        beta_start: InsideUnit = 1e-4,
        beta_end: InsideUnit = 0.02,
        zero_terminal_snr: bool = False,
    ) -> None:
        if beta_start > beta_end:
            raise ValueError(f"beta_start={beta_start} must be at most beta_end={beta_end}")
        if schedule == "cosine":
            grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
            abar = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
            beta = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
        else:
            power = 1.0 if schedule == "linear" else 2.0
            ends = (beta_start ** (1 / power), beta_end ** (1 / power))
            beta = torch.linspace(*ends, num_steps, dtype=torch.float64) ** power
        knots = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0)])  # log abar, [T + 1]
        self.zero_terminal_snr = zero_terminal_snr
        if zero_terminal_snr:
            alpha = torch.exp(0.5 * knots[1:])
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
            knots = torch.cat([torch.ones(1, dtype=torch.float64), alpha])
        (slopes,) = torch.gradient(knots, edge_order=2)  # by t T, [T + 1]
        falls = -knots.diff()
        # slopes of at most three times their neighbours' falls keep short tables monotone (Fritsch & Carlson 1980)
        steepest = 3 * torch.minimum(torch.cat([falls[:1], falls]), torch.cat([falls, falls[-1:]]))
        slopes = -torch.minimum(-slopes, steepest).clamp(min=0)
        self.tables = {knots.device: (knots, slopes)}  # one a device: a copy in every step would wait for the GPU

    def __call__(self, t: Tensor) -> Coefficients:
        if t.device not in self.tables:
            (knots, slopes), *_ = self.tables.values()
            self.tables[t.device] = knots.to(t.device), slopes.to(t.device)
        value, slope = _hermite(*self.tables[t.device], t.double())
        if self.zero_terminal_snr:
            sigma = torch.sqrt((1 - value) * (1 + value))
            c = Coefficients(value, sigma, slope, -value * slope / sigma)
        else:
            c = _variance_preserving(value, slope)
        return Coefficients(*(x.to(t.dtype) for x in c))


class VEPath:
    """alpha = 1, sigma = sigma_max t: the variance explodes, and t is sigma up to a factor (Karras et al. 2022, eq. 1
    with sigma(t) = t).

    Args:
        sigma_max: sigma at t = 1, for latents of unit variance (Karras' images have 1/4)
    """

    @checked
    def __init__(self, *, sigma_max: Positive = 80.0) -> None:
        self.sigma_max = sigma_max

    def __call__(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(one, self.sigma_max * t, 0 * one, self.sigma_max * one)


class Shifted:
    """The path with sigma / alpha multiplied by `shift` at each t, so that log-SNR moves by -2 log(shift).

    The result stays in the path's family: alpha + sigma = 1, alpha^2 + sigma^2 = 1, or alpha = 1. On the linear path
    this is the timestep shift of SD3, t -> s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23); on a variance-preserving
    one it is simple diffusion's, with s = resolution / 64 (Hoogeboom et al. 2023, eq. 4).

    Args:
        path:  of one of these families
        shift: above 1 there is more noise at each t
    """

    @checked
    def __init__(self, *, path: Path, shift: Positive) -> None:
        c = path(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        families = {1: c.alpha + c.sigma, 2: c.alpha**2 + c.sigma**2, 0: c.alpha}
        powers = [power for power, constant in families.items() if torch.allclose(constant, torch.ones_like(constant))]
        if not powers:
            raise ValueError("Shifted needs a path with alpha + sigma = 1, alpha^2 + sigma^2 = 1 or alpha = 1")
        self.path, self.shift, self.power = path, shift, powers[0]

    def __call__(self, t: Tensor) -> Coefficients:
        return _rescaled(self.path(t), 1.0, self.shift, self.power)


class Scaled:
    """The path of `scale` x0, divided by its standard deviation (Chen 2023, section 2.2): variance preserving, and on a
    variance-preserving path the same as `Shifted` by 1 / scale. scale = 1 normalises any path: VE becomes EDM's view.
    """

    @checked
    def __init__(self, *, path: Path, scale: Positive) -> None:
        self.path, self.scale = path, scale

    def __call__(self, t: Tensor) -> Coefficients:
        return _rescaled(self.path(t), self.scale, 1.0, 2)


def log_snr(c: Coefficients) -> Tensor:
    """2 log(alpha / sigma): from infinity at the data down to that of the noise."""
    return 2 * (c.alpha.log() - c.sigma.log())


def time_at(path: Path, wanted: Tensor) -> Tensor:
    """The time at which the path has this log-SNR, in float64, to 2^-60; its nearer end where it never has it."""
    wanted = wanted.double()
    low, width, cuts = torch.zeros_like(wanted), 1.0, 32  # the time lies in [low, low + width]
    inside = torch.arange(1, cuts, dtype=torch.float64, device=wanted.device) / cuts
    for _ in range(12):
        not_yet = log_snr(path(low[..., None] + width * inside)) >= wanted[..., None]  # there is less noise than wanted
        width /= cuts
        low = low + width * not_yet.sum(-1)
    return torch.where(log_snr(path(torch.ones_like(wanted))) >= wanted, 1.0, low + 0.5 * width)


def _variance_preserving(log_abar: Tensor, slope: Tensor) -> Coefficients:
    """Coefficients from log abar and its derivative by t."""
    alpha, sigma = torch.exp(0.5 * log_abar), torch.sqrt(-torch.expm1(log_abar))
    return Coefficients(alpha, sigma, 0.5 * alpha * slope, -0.5 * torch.exp(log_abar) * slope / sigma)


def _hermite(knots: Tensor, slopes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative by t of the cubic through evenly spaced knots with the given slopes by t T."""
    intervals = len(knots) - 1
    left = (t * intervals).floor().long().clamp(0, intervals - 1)
    u, rise = t * intervals - left, knots[left + 1] - knots[left]
    m0, m1 = slopes[left], slopes[left + 1]
    value = knots[left] + u**2 * (3 - 2 * u) * rise + u * (1 - u) * ((1 - u) * m0 - u * m1)
    return value, intervals * (6 * u * (1 - u) * rise + (1 - u) * (1 - 3 * u) * m0 - u * (2 - 3 * u) * m1)


def _rescaled(c: Coefficients, signal: float, noise: float, power: int) -> Coefficients:
    """(signal alpha, noise sigma) divided by their `power`-norm n; power 0 takes n = 1."""
    a, s, da, ds = signal * c.alpha, noise * c.sigma, signal * c.dalpha, noise * c.dsigma
    if power == 0:
        return Coefficients(a, s, da, ds)
    n = (a**power + s**power) ** (1 / power)
    dn = (a ** (power - 1) * da + s ** (power - 1) * ds) * n ** (1 - power)
    return Coefficients(a / n, s / n, (da - a / n * dn) / n, (ds - s / n * dn) / n)
