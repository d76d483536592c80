"""Which of diffusers' schedulers walks a model's path, and what tells the network its time there."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.diffusion.objective import Objective
from ldm.diffusion.path import BetaTablePath, CosinePath, LinearPath, Path, Shifted, VEPath
from ldm.diffusion.samplers import jump
from ldm.diffusion.sampling import Sampling
from ldm.diffusion.times import karras_grid, shifted_grid, uniform_grid

Named = Literal["euler", "heun", "ddim", "ddpm", "dpmpp_2m", "jump"]
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
TABLE = 1000  # timesteps of a path that is no table by itself


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """A scheduler of diffusers, or one that the pipeline carries.

    config:     scheduler_config.json
    library:    "diffusers", or the file in `ldm/exchange/carried` that holds its class
    clock:      see `ldm.exchange.carried.pipeline`
    path_shift: likewise
    steps:      so many that the network is asked about as often as by the model's own sampler
    """

    config: dict[str, Any]
    library: str = "diffusers"
    clock: str
    path_shift: float = 1.0
    steps: int


def counterpart(
    objective: Objective, path_node: dict[str, Any], sampling: Sampling, wanted: Named | None, known: int | None = None
) -> Counterpart:
    """The scheduler for a model.

    Args:
        objective: of the model
        path_node: what its card says of its path
        sampling:  of the model, whose function decides where nothing is wanted
        wanted:    which scheduler
        known:     steps of a student that knows no times but their ends

    Raises:
        ValueError: naming what has no counterpart in diffusers.
    """
    path: Any = objective.path
    if wanted == "jump" or (wanted is None and _bound(sampling.function)[0] is jump):
        return _jumping(objective, sampling)
    shift = 1.0
    while isinstance(path, Shifted) and path.power == 1:
        path, shift = path.path, shift * path.shift
    if isinstance(path, LinearPath):
        return _straight(objective, path, shift, sampling, wanted)
    if isinstance(path, VEPath):
        return _exploding(objective, path, sampling, wanted)
    if _preserves_variance(objective.path):
        return _table(objective, path_node, sampling, wanted, known)
    raise ValueError(f"diffusers has no scheduler for the path {path_node['_target_']}")


def _jumping(objective: Objective, sampling: Sampling) -> Counterpart:
    """From time to time at once, as students do."""
    path = objective.path
    straight = objective.average and isinstance(path, LinearPath) and path.sigma_min == 0
    if not straight and not (isinstance(path, CosinePath) and objective.parameterization == "v"):
        raise ValueError(
            "diffusers' pipeline jumps by average velocities on the straight path (sigma_min=0), or by v on the cosine "
            "path alone: pass scheduler="
        )
    grid, options = _bound(sampling.grid)
    if grid not in (uniform_grid, shifted_grid):
        raise ValueError(f"diffusers' pipeline jumps along grid=uniform or shifted, not {grid.__name__}")
    config = {
        "_class_name": "JumpScheduler",
        "num_train_timesteps": TABLE,
        "prediction_type": "average_velocity" if straight else "v_prediction",
        "renoise": _bound(sampling.function)[1].get("renoise", False),
        "shift": options.get("shift", 3.0) if grid is shifted_grid else 1.0,
    }
    return Counterpart(config=config, library="jump_scheduler", clock="timestep", steps=sampling.steps)


def _straight(
    objective: Objective, path: LinearPath, shift: float, sampling: Sampling, wanted: Named | None
) -> Counterpart:
    """alpha = 1 - sigma, of which the network has learned dx/dt."""
    if path.sigma_min > 0:
        raise ValueError(f"diffusers' flow matching ends at the data: it has no sigma_min={path.sigma_min:g}")
    if objective.parameterization != "velocity" or objective.unit_input:
        what = "unit_input" if objective.unit_input else f"parameterization={objective.parameterization}"
        raise ValueError(f"diffusers has no scheduler for {what} on the straight path, only for velocity")
    named = _chosen(wanted, ("euler", "heun"), "euler", "the straight path")
    grid, options = _bound(sampling.grid)
    grid_shift = options.get("shift", 3.0) if grid is shifted_grid else 1.0
    config = {
        "_class_name": f"FlowMatch{named.capitalize()}DiscreteScheduler",
        "num_train_timesteps": TABLE,
        "shift": shift * grid_shift,  # one after the other, shifts multiply
    }
    steps = sampling.steps * (1 if named == "heun" else _evaluations(sampling))
    return Counterpart(config=config, clock="sigma", path_shift=shift, steps=steps)


def _exploding(objective: Objective, path: VEPath, sampling: Sampling, wanted: Named | None) -> Counterpart:
    """alpha = 1: EDM's view, in which the network sees x / sqrt(1 + sigma^2) and has learned v."""
    if objective.parameterization != "v" or not objective.unit_input:
        raise ValueError(
            "diffusers has schedulers for alpha = 1 only with parameterization=v and unit_input=true (EDM)"
        )
    own = {"heun": "heun", "dpmpp_2m": "dpmpp_2m"}.get(_bound(sampling.function)[0].__name__, "euler")
    named = _chosen(wanted, ("euler", "heun", "dpmpp_2m"), own, "EDM's path")
    grid, options = _bound(sampling.grid)
    karras = options if grid is karras_grid else {}
    sigma_min, sigma_max = karras.get("sigma_min", 0.002), min(karras.get("sigma_max", 80.0), path.sigma_max)
    rho = karras.get("rho", 7.0)
    if named == "heun":
        if rho != 7:
            raise ValueError(f"diffusers' Heun has rho=7, not {rho:g}: pass scheduler=euler")
        sigma = torch.linspace(sigma_min ** (1 / 7), sigma_max ** (1 / 7), TABLE, dtype=torch.float64) ** 7
        config = {
            "_class_name": "HeunDiscreteScheduler",
            "trained_betas": _betas(1 / (1 + sigma**2)),
            "num_train_timesteps": TABLE,
            "use_karras_sigmas": True,
            "timestep_spacing": "linspace",
        }
    else:
        config = {
            "_class_name": {"euler": "EDMEulerScheduler", "dpmpp_2m": "EDMDPMSolverMultistepScheduler"}[named],
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "sigma_data": 1.0,
            "rho": rho,
        }
    steps = sampling.steps * (1 if named == own else _evaluations(sampling))
    return Counterpart(config=config | {"prediction_type": "v_prediction"}, clock="angle", steps=steps)


def _table(
    objective: Objective, path_node: dict[str, Any], sampling: Sampling, wanted: Named | None, student: int | None
) -> Counterpart:
    """alpha^2 + sigma^2 = 1, as a table of betas."""
    if objective.parameterization not in PREDICTIONS or objective.unit_input:
        what = "unit_input" if objective.unit_input else f"parameterization={objective.parameterization}"
        raise ValueError(f"diffusers has no scheduler for {what} on a path of betas, only for {', '.join(PREDICTIONS)}")
    ends_without_signal = float(objective.path(torch.ones((), dtype=torch.float64)).alpha) < 1e-6
    known: tuple[Named, ...] = (
        ("ddim", "ddpm") if ends_without_signal else ("ddim", "ddpm", "dpmpp_2m", "euler", "heun")
    )
    function = _bound(sampling.function)[0].__name__
    own = function if function in known[:3] else "ddim"
    named = _chosen(wanted, known, own, "a path that ends at alpha = 0" if ends_without_signal else "a path of betas")
    classes: dict[str, tuple[str, dict[str, Any]]] = {
        "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
        "ddpm": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}),
        "dpmpp_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),
        "euler": ("EulerDiscreteScheduler", {}),
        "heun": ("HeunDiscreteScheduler", {}),
    }
    name, options = classes[named]
    table = _as_betas(objective.path, path_node, student or 1)
    config = {
        "_class_name": name,
        **table,
        "prediction_type": PREDICTIONS[objective.parameterization],
        "timestep_spacing": "trailing",
        **options,
    }
    steps, timesteps = (
        sampling.steps * (1 if named in (function, "heun") else _evaluations(sampling)),
        table["num_train_timesteps"],
    )
    if timesteps % (student or 1):
        raise ValueError(
            f"diffusers would ask this student of {student} steps at other times than it knows: its table of "
            f"{timesteps} timesteps is no multiple of {student}"
        )
    return Counterpart(config=config, clock="timestep", steps=min(steps, timesteps))


def _as_betas(path: Path, node: dict[str, Any], multiple: int) -> dict[str, Any]:
    """A table by diffusers' names where it has them; else all of its betas, by alpha at t = 1 / T, 2 / T, ..., 1, where
    T is a multiple of `multiple` unless the path is a table itself."""
    if isinstance(path, BetaTablePath) and node["schedule"] != "cosine" and not node.get("zero_terminal_snr"):
        return {
            "num_train_timesteps": node["num_steps"],
            "beta_schedule": node["schedule"],
            "beta_start": node.get("beta_start", 1e-4),
            "beta_end": node.get("beta_end", 0.02),
        }
    steps = node["num_steps"] if isinstance(path, BetaTablePath) else TABLE // multiple * multiple
    alpha = path(torch.arange(1, steps + 1, dtype=torch.float64) / steps).alpha
    return {"num_train_timesteps": steps, "trained_betas": _betas(alpha**2)}


def _betas(abar: Tensor) -> list[float]:
    """beta_i = 1 - abar_i / abar_(i - 1), with 1 before the first."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return [float(beta) for beta in 1 - abar / before]


def _preserves_variance(path: Path) -> bool:
    c = path(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return bool(((c.alpha**2 + c.sigma**2 - 1).abs() < 1e-6).all())


def _chosen(wanted: Named | None, known: tuple[Named, ...], usual: str, where: str) -> str:
    if wanted is not None and wanted not in known:
        raise ValueError(f"scheduler={wanted}: on {where} diffusers' pipeline has {', '.join(known)}")
    return wanted or usual


def _evaluations(sampling: Sampling) -> int:
    """Of the denoiser, a step of the model's own sampler."""
    return {"heun": 2, "midpoint": 2, "rk4": 4}.get(_bound(sampling.function)[0].__name__, 1)


def _bound(function: Any) -> tuple[Any, dict[str, Any]]:
    """A function and the options that are bound to it."""
    return (function.func, function.keywords) if isinstance(function, partial) else (function, {})
