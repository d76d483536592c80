"""When: the times drawn in training, and the grids that samplers walk."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ldm.diffusion.path import Path, log_snr, time_at

TimeSampler = Callable[[int, Path, torch.device], Tensor]  # (n, path, device) -> t [n] in (0, 1]


class Uniform:
    """t ~ U(eps, 1); eps keeps away from t = 0, where a variance-preserving path's velocity is infinite."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        self.eps = eps

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        return self.eps + (1 - self.eps) * torch.rand(n, device=device)


class Stratified:
    """Uniform, with one draw in each n-th of the interval: a batch covers all times (Kingma et al. 2021, app. I.1)."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        self.eps = eps

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        place = torch.randperm(n, device=device) + torch.rand(n, device=device)
        return self.eps + (1 - self.eps) * place / n


class Discrete:
    """t ~ U{1/T, 2/T, ..., 1}: the timesteps of a beta table (Ho et al. 2020, algorithm 1)."""

    def __init__(self, *, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        return torch.randint(1, self.num_steps + 1, (n,), device=device) / self.num_steps


class LogitNormal:
    """logit(t) ~ N(mean, std^2): more weight on the middle of the path (Esser et al. 2024, eq. 19)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn(n, device=device))


class Mode:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u ~ U(0, 1): heavy tails; for scale > 0 more weight on the middle
    (Esser et al. 2024, eq. 20); scale lies in [-1, 2 / (pi - 2)], where t rises with 1 - u."""

    def __init__(self, *, scale: float = 1.29) -> None:
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ValueError(f"time_sampler.scale={scale} must lie in [-1, {2 / (math.pi - 2):.3f}]")
        self.scale = scale

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        u = torch.rand(n, device=device)
        t = 1 - u - self.scale * (torch.cos(0.5 * math.pi * u) ** 2 - 1 + u)
        return t.clamp(1e-5, 1)  # u = 0 gives t = 1; of u near 1 rounding would make 0


class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), at the path's times with that ratio (Karras et al. 2022, table 1).

    EDM's mean of -1.2 is for images of standard deviation 1/2: -0.5 for latents of 1. What lies beyond the path's ends
    is drawn at them.
    """

    def __init__(self, *, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, n: int, path: Path, device: torch.device) -> Tensor:
        log_ratio = self.mean + self.std * torch.randn(n, device=device)
        return time_at(path, -2 * log_ratio).float().clamp(min=1e-6)


class Grid(Protocol):
    """(path, steps, t_max) -> times [steps + 1], float64, from t_max (or just below) down to 0."""

    def __call__(self, path: Path, steps: int, t_max: float) -> Tensor: ...


def uniform_grid(path: Path, steps: int, t_max: float = 1.0) -> Tensor:
    """Even in t. On a beta table of T = N k steps: diffusers' "trailing" spacing."""
    if steps < 1:
        raise ValueError(f"sampler.steps must be at least 1, not {steps}")
    return torch.linspace(t_max, 0.0, steps + 1, dtype=torch.float64)


def shifted_grid(path: Path, steps: int, t_max: float = 1.0, *, shift: float = 3.0) -> Tensor:
    """t -> s t / (1 + (s - 1) t) of the uniform grid: on the linear path, a move of -2 log(s) in log-SNR (Esser et al.
    2024, eq. 23)."""
    if shift <= 0:
        raise ValueError(f"grid.shift={shift} must be positive")
    t = uniform_grid(path, steps)
    return t_max * shift * t / (1 + (shift - 1) * t)


def log_snr_grid(path: Path, steps: int, t_max: float = 1.0, *, low: float = -10.0, high: float = 10.0) -> Tensor:
    """Even in log-SNR between `low` and `high`, or the path's own ends where it does not go as far; then 0 (Lu et al.
    2022, section 5)."""
    first, last = _reach(path, t_max)
    return _at(path, torch.linspace(max(low, first), min(high, last), steps, dtype=torch.float64), steps)


def karras_grid(
    path: Path, steps: int, t_max: float = 1.0, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5) from sigma_max to sigma_min, or the path's own ends
    where it does not go as far; then 0."""
    first, last = (math.exp(-0.5 * end) for end in _reach(path, t_max))
    ends = (min(sigma_max, first) ** (1 / rho), max(sigma_min, last) ** (1 / rho))
    return _at(path, -2 * rho * torch.linspace(*ends, steps, dtype=torch.float64).log(), steps)


def trailing_grid(path: Path, steps: int, t_max: float = 1.0, *, num_steps: int = 1000) -> Tensor:
    """T, T - T/N, ... of a table's T timesteps, rounded to whole ones (Lin et al. 2024, table 2): t = timestep / T."""
    _check_discrete(steps, num_steps)
    walk = torch.arange(steps, dtype=torch.float64) * (num_steps / steps)
    return _below(torch.round(num_steps - walk) / num_steps, t_max)


def leading_grid(path: Path, steps: int, t_max: float = 1.0, *, num_steps: int = 1000, offset: int = 1) -> Tensor:
    """offset, offset + k, offset + 2k, ... with k = T // N, downward: LDM's and DDIM's spacing, which never visits T.

    A timestep i, counted from 0 as they do, is our t = (i + 1) / T.
    """
    _check_discrete(steps, num_steps)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (num_steps // steps) + offset
    return _below((index.clamp(max=num_steps - 1) + 1) / num_steps, t_max)


def _reach(path: Path, t_max: float) -> list[float]:
    """The log-SNR at t_max, and next to t = 0."""
    return log_snr(path(torch.tensor([t_max, 1e-6], dtype=torch.float64))).tolist()


def _at(path: Path, log_snrs: Tensor, steps: int) -> Tensor:
    if steps < 1:
        raise ValueError(f"sampler.steps must be at least 1, not {steps}")
    return torch.cat([time_at(path, log_snrs), torch.zeros(1, dtype=torch.float64)])


def _check_discrete(steps: int, num_steps: int) -> None:
    if not 1 <= steps <= num_steps:
        raise ValueError(f"sampler.steps={steps} must lie between 1 and the grid's num_steps={num_steps}")


def _below(times: Tensor, t_max: float) -> Tensor:
    if times[0] > t_max:
        raise ValueError(f"a discrete grid starts at t = {times[0]:.4f}, but only t <= {t_max:.4f} can be sampled here")
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])
