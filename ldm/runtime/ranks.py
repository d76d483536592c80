"""Devices and ranks: what started this process, and what the commands that do not train need of it."""

import os
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist


class Launch(NamedTuple):
    """What started this process, and as which of how many."""

    by: Literal["torchrun", "srun", ""]
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    nodes: int = 1


def launch() -> Launch:
    """Read it from the environment; ValueError within a SLURM job of several tasks whose ranks srun did not start."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        return Launch(
            "torchrun", int(env["RANK"]), world, int(env["LOCAL_RANK"]), world // int(env["LOCAL_WORLD_SIZE"])
        )
    tasks = int(env.get("SLURM_NTASKS", "1"))
    if tasks == 1:
        return Launch("")
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
        raise ValueError(
            f"this SLURM job has {tasks} tasks: start the command by srun, which starts one process for each"
        )
    nodes = int(env["SLURM_NNODES"])
    if tasks % nodes:
        raise ValueError(f"{tasks} tasks on {nodes} nodes: give each node equally many (--ntasks-per-node)")
    return Launch("srun", int(env["SLURM_PROCID"]), tasks, int(env["SLURM_LOCALID"]), nodes)


def pick_device(name: str) -> torch.device:
    """ "auto" is this rank's GPU if there is one, else the CPU."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={name}, but torch finds no CUDA device here: pass device=auto")
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", launch().local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def precision(device: torch.device) -> str:
    """How this device computes in float32."""
    allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    fast = allowed and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return "float32 (TF32)" if fast else "float32"


def join_ranks() -> tuple[int, int]:
    """(rank, world size), joining the group that torchrun or srun announces, if any."""
    start = launch()
    if start.world == 1:
        return 0, 1
    if start.by == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        address = f"tcp://{slurm.main_address}:{slurm.main_port}"
        dist.init_process_group("gloo", address, rank=start.rank, world_size=start.world)
    else:
        dist.init_process_group("gloo")  # it carries finished results only, from CPU memory
    return start.rank, start.world


def gather(value: Any) -> list[Any]:
    """Every rank's value, on rank 0; an empty list on the others."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    dist.destroy_process_group()
    return values or []


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Its mean over the ranks of a training run; itself where there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
