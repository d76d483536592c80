"""A sampler, its number of steps and the grid of times that it walks; each objective's config names what fits it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from ldm.diffusion import path as paths
from ldm.diffusion import samplers, times
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.objective import Denoise
from ldm.diffusion.path import Path
from ldm.diffusion.times import Grid, uniform_grid

Sampler = Callable[..., Tensor]  # (denoise, path, x, times) -> x, and noise=, where it draws any


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler and the times that it walks.

    function:  one of `ldm.diffusion.samplers`, or like one, its own options bound
    steps:     of its grid; a sampler may evaluate the denoiser several times a step
    grid:      one of `ldm.diffusion.times`, its own options bound
    """

    function: Sampler = samplers.heun
    steps: int = 25
    grid: Grid = uniform_grid

    def describe(self) -> dict[str, Any]:
        """Its names and numbers, for stamps."""
        return {
            "sampler": {"function": _described(self.function), "steps": self.steps},
            "grid": _described(self.grid),
        }

    def walk(self, denoise: Denoise, path: Path, x: Tensor, t: Tensor, noise: IndexedNoise) -> Tensor:
        """x [B, C, h, w] at t[0] -> x at t[-1]; noise goes to the samplers that take it."""
        takes_noise = "noise" in inspect.signature(self.function).parameters
        return self.function(denoise, path, x, t, **({"noise": noise} if takes_noise else {}))


def sampler_named(name: str) -> Sampler:
    """`ldm.diffusion.samplers.NAME`; ValueError, with the names that there are."""
    return _named(samplers, name, "sampler")


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
        found.removesuffix(suffix): value
        for found, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and found.endswith(suffix)
        and not found.startswith("_")
    }
    if name not in known:
        raise ValueError(f"{key}={name} must be one of {', '.join(sorted(known))}, or a function")
    return known[name]


def _described(function: Any) -> dict[str, Any]:
    """A function's full name and the options that are bound to it."""
    bare, options = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    name = getattr(bare, "__qualname__", type(bare).__qualname__)
    return {"_target_": f"{bare.__module__}.{name}", **options}


def _required(target: Callable[..., Any]) -> list[str]:
    """The arguments that have no default."""
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]
