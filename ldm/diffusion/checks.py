"""Whether a path, a time sampler and a weighting keep their contract: tried, at next to no cost, before use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ldm.diffusion.autoregressive import Autoregressive
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import Coefficients, Path

LATENT = (4, 8, 8)  # any would do


@contextmanager
def apart() -> Iterator[None]:
    """Without gradients, and with random numbers of its own."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def objective_kind(parts: dict[str, Any]) -> type[Objective]:
    """Of an objective's parts by name: the class that they are arguments of."""
    return Autoregressive if "codes" in parts else Objective


def checked_objective(parts: dict[str, Any]) -> Objective:
    """Make an objective of its parts, by name, and compute the loss of a network that says zero.

    Raises:
        ValueError: if the path, the time sampler or the weighting does not keep the contract above.
    """
    for name in ("path", "weighting", "time_sampler"):
        if name in parts and not callable(parts[name]):
            raise ValueError(f"objective.{name} is a {type(parts[name]).__name__}, which can't be called")
    try:
        return _checked(parts)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"objective: {error} ({type(error).__name__})") from None


def _checked(parts: dict[str, Any]) -> Objective:
    if "path" in parts:
        _check_path(parts["path"])
    objective = objective_kind(parts)(**parts)
    with apart():
        x0, y = torch.randn(4, *LATENT), torch.zeros(4, dtype=torch.long)
        x0 = (x0[:, :1] > 0).long() if objective.of_codes else x0
        t = objective.time_sampler(4, objective.path, x0.device)
        if t.shape != (4,) or not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"objective.time_sampler must draw n times in [0, 1], [4] of n = 4, not {t.tolist()}")
        loss, _ = objective.loss(lambda x_t, _t, _y: objective.silent(x_t), x0, y, t=t)
    if loss.shape != (4,) or not loss.isfinite().all():
        raise ValueError(f"objective.weighting must give each image its finite loss, [4] of 4, not {loss.tolist()}")
    return objective


def _check_path(path: Path) -> None:
    t, h = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 1e-3
    c = path(t)
    if not isinstance(c, Coefficients) or any(value.shape != t.shape for value in c):
        raise ValueError("objective.path must return ldm.diffusion.path.Coefficients, each of t's shape")
    before, after = path(t - h), path(t + h)
    for name, slope in (("alpha", c.dalpha), ("sigma", c.dsigma)):
        rise = (getattr(after, name) - getattr(before, name)) / (2 * h)
        if not torch.allclose(slope.double(), rise.double(), rtol=0.02, atol=0.02):
            raise ValueError(
                f"objective.path: d{name} must be the derivative of {name} by t: at t = {t.tolist()} it is "
                f"{[round(s, 3) for s in slope.tolist()]}, but {name} rises by {[round(r, 3) for r in rise.tolist()]}"
            )
