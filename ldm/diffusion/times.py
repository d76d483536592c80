"""When: the times drawn in training, and the grids that samplers walk."""

from collections.abc import Callable

import torch
from torch import Tensor

TimeSampler = Callable[[int, torch.device], Tensor]  # (n, device) -> t [n] in (0, 1]


class Uniform:
    """t ~ U(eps, 1); eps keeps away from t = 0, where a variance-preserving path's velocity is infinite."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        self.eps = eps

    def __call__(self, n: int, device: torch.device) -> Tensor:
        return self.eps + (1 - self.eps) * torch.rand(n, device=device)


class Discrete:
    """t ~ U{1/T, 2/T, ..., 1}: the timesteps of a beta table (Ho et al. 2020, algorithm 1)."""

    def __init__(self, *, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, n: int, device: torch.device) -> Tensor:
        return torch.randint(1, self.num_steps + 1, (n,), device=device) / self.num_steps


class LogitNormal:
    """logit(t) ~ N(mean, std^2): more weight on the middle of the path (Esser et al. 2024, eq. 19)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, n: int, device: torch.device) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn(n, device=device))


def uniform_grid(steps: int, device: torch.device | None = None) -> Tensor:
    """Times 1, 1 - 1/N, ..., 0: [N + 1], float64. On a beta table of T steps: diffusers' "trailing" spacing."""
    if steps < 1:
        raise ValueError(f"sampler.steps must be at least 1, not {steps}")
    return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64, device=device)
