"""The times that training draws, and the grids of times that samplers walk."""

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from ldm.diffusion.path import Path, log_snr, time_at
from ldm.runtime.ranges import Count, Fraction, Natural, Positive, checked

Last = Literal["x0", "first_timestep"]  # where a discrete grid's last step ends: t = 0, or 1 / T
TimeSampler = Callable[[int, Path, torch.device], Tensor]  # (n, path, device) -> t [n] in (0, 1]


class Uniform:
    """t ~ U(eps, 1).

    Args:
        eps: keeps away from t = 0, where the velocity is infinite on paths of betas
    """

    @checked
    def __init__(self, *, eps: Fraction = 1e-3) -> None:
        self.eps = eps

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        return self.eps + (1 - self.eps) * torch.rand(n, device=device)


class Stratified:
    """Uniform, with one draw in each n-th of the interval: a batch covers all times (Kingma et al. 2021, app. I.1).

    Args:
        eps: as of `Uniform`
    """

    @checked
    def __init__(self, *, eps: Fraction = 1e-3) -> None:
        self.eps = eps

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        place = torch.randperm(n, device=device) + torch.rand(n, device=device)
        return self.eps + (1 - self.eps) * place / n


class Discrete:
    """t ~ U{1/T, 2/T, ..., 1}: the timesteps of a beta table (Ho et al. 2020, algorithm 1).

    Args:
        num_steps: T
    """

    @checked
    def __init__(self, *, num_steps: Count) -> None:
        self.num_steps = num_steps

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        return torch.randint(1, self.num_steps + 1, (n,), device=device) / self.num_steps


class LogitNormal:
    """logit(t) ~ N(mean, std^2): more weight on the middle of the path (Esser et al. 2024, eq. 19).

    Args:
        mean: of logit(t); above 0 is nearer to the noise
        std:  of logit(t)
    """

    @checked
    def __init__(self, *, mean: float = 0.0, std: Positive = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn(n, device=device))


class Mode:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u ~ U(0, 1): heavy tails (Esser et al. 2024, eq. 20).

    Args:
        scale: above 0 there is more weight on the middle, below on the ends; between -1 and 2 / (pi - 2), where t rises
               with 1 - u
    """

    def __init__(self, *, scale: float = 1.29) -> None:
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ValueError(f"scale={scale} must lie in [-1, {2 / (math.pi - 2):.3f}]")
        self.scale = scale

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        u = torch.rand(n, device=device)
        t = 1 - u - self.scale * (torch.cos(0.5 * math.pi * u) ** 2 - 1 + u)
        return t.clamp(1e-5, 1)  # u = 0 gives t = 1; of u near 1 rounding would make 0


class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), at the path's times with that ratio (Karras et al. 2022, table 1).

    Ratios that the path does not reach are drawn at its nearer end.

    Args:
        mean: of log(sigma / alpha); EDM's -1.2 is for images of standard deviation 1/2, which is -0.5 for latents of 1
        std:  of log(sigma / alpha)
    """

    @checked
    def __init__(self, *, mean: float, std: Positive) -> None:
        self.mean, self.std = mean, std

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        log_ratio = self.mean + self.std * torch.randn(n, device=device)
        return time_at(path, -2 * log_ratio).float().clamp(min=1e-6)


class Grid(Protocol):
    """(path, steps, t_max) -> times [steps + 1], float64, from t_max (or just below) down to 0.

    Of a table's timesteps, `leading_grid` may walk more steps than are asked for, and both grids may end at the first.
    """

    def __call__(self, path: Path, steps: int, t_max: float) -> Tensor: ...


@checked
def uniform_grid(path: Path, steps: Count, t_max: float = 1.0) -> Tensor:
    """Even in t. On a beta table of T = N k steps: diffusers' "trailing" spacing."""
    return torch.linspace(t_max, 0.0, steps + 1, dtype=torch.float64)


@checked
def cosine_grid(path: Path, steps: Count, t_max: float = 1.0) -> Tensor:
    """cos(pi r / 2) of even r: the rule by which MaskGIT reveals few places at first and many at the end (Chang et al.
    2022, section 3.3), for codes."""
    return t_max * torch.sin(0.5 * math.pi * uniform_grid(path, steps))  # r = 1 - u


@checked
def shifted_grid(path: Path, steps: Count, t_max: float = 1.0, *, shift: Positive = 3.0) -> Tensor:
    """t -> s t / (1 + (s - 1) t) of the uniform grid: on the linear path, a move of -2 log(s) in log-SNR (Esser et al.
    2024, eq. 23).

    Args:
        shift: s; above 1 there are more steps near the noise
    """
    t = uniform_grid(path, steps)
    return t_max * shift * t / (1 + (shift - 1) * t)


@checked
def log_snr_grid(path: Path, steps: Count, t_max: float = 1.0, *, low: float = -10.0, high: float = 10.0) -> Tensor:
    """Even in log-SNR, then 0 (Lu et al. 2022, section 5).

    Args:
        low:  log-SNR of the first time, or the path's own at t_max where it does not go as far
        high: of the last time before 0, or the path's own next to 0
    """
    if low >= high:
        raise ValueError(f"low={low} must be less than high={high}")
    first, last = _reach(path, t_max)
    return _at(path, torch.linspace(max(low, first), min(high, last), steps, dtype=torch.float64))


@checked
def karras_grid(
    path: Path,
    steps: Count,
    t_max: float = 1.0,
    *,
    sigma_min: Positive = 0.002,
    sigma_max: Positive = 80.0,
    rho: Positive = 7.0,
) -> Tensor:
    """Even in (sigma / alpha)^(1 / rho), then 0 (Karras et al. 2022, eq. 5).

    Args:
        sigma_min: sigma / alpha of the last time before 0, or the path's own next to 0 where it does not go as far
        sigma_max: of the first time, or the path's own at t_max
        rho:       the higher, the more steps near the data
    """
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min={sigma_min} must be less than sigma_max={sigma_max}")
    first, last = (math.exp(-0.5 * end) for end in _reach(path, t_max))
    ends = (min(sigma_max, first) ** (1 / rho), max(sigma_min, last) ** (1 / rho))
    return _at(path, -2 * rho * torch.linspace(*ends, steps, dtype=torch.float64).log())


@checked
def trailing_grid(
    path: Path, steps: Count, t_max: float = 1.0, *, num_steps: Count = 1000, last: Last = "x0"
) -> Tensor:
    """T, T - T/N, ... of a table's T timesteps, rounded to whole ones (Lin et al. 2024, table 2): t = timestep / T.

    Args:
        num_steps: T
        last:      where the last step ends, see `leading_grid`
    """
    _check_discrete(steps, num_steps)
    walk = torch.arange(steps, dtype=torch.float64) * (num_steps / steps)
    return _discrete(torch.round(num_steps - walk), num_steps, t_max, last)


@checked
def leading_grid(
    path: Path, steps: Count, t_max: float = 1.0, *, num_steps: Count = 1000, offset: Natural = 1, last: Last = "x0"
) -> Tensor:
    """offset, offset + k, offset + 2k, ... below T, with k = T // N, downward: LDM's and DDIM's spacing.

    LDM counts timesteps from 0: its timestep i is t = (i + 1) / T. The walk has N steps where N divides T; elsewhere,
    as in LDM, as many as it takes to come near T: 8 for N = 7.

    Args:
        num_steps: T, the length of the table
        offset:    the lowest timestep that is visited
        last:      where the last step ends: at the data, x0; or, as LDM's DDIM does, at first_timestep, t = 1 / T, so
                   that its noise stays in the samples (with LDM's betas 0.039, where latents have 1)
    """
    _check_discrete(steps, num_steps)
    if offset >= num_steps:
        raise ValueError(f"offset={offset} must be less than num_steps={num_steps}")
    visited = torch.arange(offset, num_steps, num_steps // steps, dtype=torch.float64).flip(0)
    return _discrete(visited + 1, num_steps, t_max, last)


def _reach(path: Path, t_max: float) -> list[float]:
    """The log-SNR at t_max, and next to t = 0."""
    return log_snr(path(torch.tensor([t_max, 1e-6], dtype=torch.float64))).tolist()


def _at(path: Path, log_snrs: Tensor) -> Tensor:
    """The times with these log-SNRs, then 0."""
    return torch.cat([time_at(path, log_snrs), torch.zeros(1, dtype=torch.float64)])


def _check_discrete(steps: int, num_steps: int) -> None:
    if steps > num_steps:
        raise ValueError(f"steps={steps} must be at most the num_steps={num_steps} of the grid's table")


def _discrete(timesteps: Tensor, num_steps: int, t_max: float, last: Last) -> Tensor:
    """Timesteps, counted from 1, as times, and the end of the last step."""
    end = 0 if last == "x0" else 1
    if timesteps[-1] <= end:
        raise ValueError("last=first_timestep is where this grid ends already: pass last=x0, or fewer steps")
    times = torch.cat([timesteps, torch.tensor([end], dtype=torch.float64)]) / num_steps
    if times[0] > t_max:
        raise ValueError(
            f"a table's grid starts at t = {times[0]:.4f}, but here only t <= {t_max:.4f} can be sampled: "
            "pass grid=uniform"
        )
    return times
