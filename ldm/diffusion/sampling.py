"""A sampler, its number of steps and the grid of times that it walks; each objective's config names what fits it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion import path as paths
from ldm.diffusion import samplers, times
from ldm.diffusion.autoregressive import ardm
from ldm.diffusion.objective import Denoise
from ldm.diffusion.parameterization import Prediction, scale
from ldm.diffusion.path import Path
from ldm.diffusion.times import Grid, uniform_grid
from ldm.runtime.ranges import Steps

SIGNAL = 0.05  # share of the variance of x_t that may be the latent's where sampling starts from noise alone
Sampler = Callable[..., Tensor]  # (denoise, path, x, times) -> x, and noise=, where it draws any


@dataclass
class Record:
    """Counts a denoiser's evaluations and keeps the first `keep` samples' states."""

    denoise: Denoise
    keep: int = 0
    evaluations: int = 0
    states: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # (t, x_t, x0), [keep, C, h, w] each

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Prediction:
        prediction = self.denoise(x_t, t) if s is None else self.denoise(x_t, t, s)
        self.evaluations += 1
        if self.keep:
            self.states.append((t, x_t[: self.keep], prediction.x0[: self.keep]))
        return prediction


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler and the times that it walks.

    function:  one of `ldm.diffusion.samplers`, or like one, its own options bound
    steps:     of its grid; a sampler may evaluate the denoiser several times a step
    grid:      one of `ldm.diffusion.times`, its own options bound
    """

    function: Sampler = samplers.heun
    steps: Steps = 25
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        for key, arguments in (("function", ("denoise", "path", "x", "times")), ("grid", ("path", "steps"))):
            _check_called_with(getattr(self, key), key, arguments)

    def describe(self) -> dict[str, Any]:
        """Its names and numbers, for stamps."""
        return {
            "sampler": {"function": _described(self.function), "steps": self.steps},
            "grid": _described(self.grid),
        }

    def walk(self, denoise: Denoise, path: Path, x: Tensor, t: Tensor, noise: samplers.Noise) -> Tensor:
        """x [B, C, h, w] at t[0] -> x at t[-1]; noise goes to the samplers that take it."""
        takes_noise = "noise" in inspect.signature(self.function).parameters
        return self.function(denoise, path, x, t, **({"noise": noise} if takes_noise else {}))


def check_times(path: Path, times: Tensor, latest: float) -> None:
    """Hold a grid's times to what sampling from noise along a path needs of them.

    Args:
        path:   what is walked
        times:  [N + 1]
        latest: the time from which noise alone is the best start there is, 1 on the path of training

    Raises:
        ValueError: where the times do not fall, or the path is not finite at them; where x_t still holds the latent at
            the first, so that noise is no such state; where the last of many steps has all detail still to make.
    """
    c = path(times[:-1])
    if not all(value.isfinite().all() for value in c) or (times.diff() >= 0).any():
        raise ValueError(
            "sampler and path do not fit: the grid's times must fall, and the path be finite at them, "
            f"not {', '.join(f'{float(t):.6g}' for t in times[:8])}{' ...' if len(times) > 8 else ''}"
        )
    share, most = (_signal_share(path, t) for t in (times[0], torch.tensor(latest, dtype=torch.float64)))
    if share > max(SIGNAL, most + 1e-6):
        raise ValueError(
            f"sampler and path do not fit: the grid starts at t = {float(times[0]):.3f}, where {share:.0%} of the "
            "variance of x_t is the latent's, but sampling starts from noise alone: pass grid=uniform, or a grid that "
            "starts nearer to the path's end"
        )
    if len(times) > 8 and (last := float(c.sigma[-1] / c.alpha[-1])) > 1.5:
        raise ValueError(
            f"sampler and path do not fit: the last of {len(times) - 1} steps starts at sigma / alpha = {last:.2f}, "
            "with all detail still to come: pass grid=karras or log_snr"
        )


def _signal_share(path: Path, t: Tensor) -> float:
    """alpha^2 / (alpha^2 + sigma^2) at time t []."""
    return float((path(t).alpha / scale(path(t))) ** 2)


def sampler_named(name: str) -> Sampler:
    """`ldm.diffusion.samplers.NAME`, or `ardm`; ValueError, with the names that there are."""
    return ardm if name == ardm.__name__ else _named(samplers, name, "sampler")


def grid_named(name: str) -> Grid:
    """`ldm.diffusion.times.NAME_grid`; ValueError, with the names that there are."""
    return _named(times, name, "grid", "_grid")


def path_named(name: str) -> Path:
    """`ldm.diffusion.path.NamePath()`, as linear or cosine; ValueError, with the names that there are."""
    known: dict[str, Any] = {
        key.removesuffix("Path").lower(): value
        for key, value in vars(paths).items()
        if inspect.isclass(value) and key.endswith("Path") and value.__module__ == paths.__name__
    }
    ready = {key for key, value in known.items() if not _required(value)}
    if name not in ready:
        raise ValueError(f"path={name} must be one of {', '.join(sorted(ready))}, or a path itself")
    return known[name]()


def _named(module: ModuleType, name: str, key: str, suffix: str = "") -> Any:
    """A public function of a module by its name without the suffix."""
    known = {
        function.removesuffix(suffix): value
        for function, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and function.endswith(suffix)
        and not function.startswith("_")
    }
    if name not in known:
        raise ValueError(f"{key}={name} must be one of {', '.join(sorted(known))}, or a function")
    return known[name]


def _check_called_with(function: Callable[..., Any], key: str, arguments: tuple[str, ...]) -> None:
    """ValueError if a function can't be called with so many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{key}={_name_of(function)} does not take ({', '.join(arguments)}): {error}") from None


def _name_of(function: Any) -> str:
    bare = function.func if isinstance(function, partial) else function
    return str(getattr(bare, "__name__", type(bare).__name__))


def _described(function: Any) -> dict[str, Any]:
    """A function's full name and the options that are bound to it."""
    bare, options = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    name = getattr(bare, "__qualname__", type(bare).__qualname__)
    return {"_target_": f"{bare.__module__}.{name}", **options}


def _required(target: Callable[..., Any]) -> list[str]:
    """The arguments that have no default."""
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]
