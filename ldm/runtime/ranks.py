"""Ranks and devices: what started this process, and what commands share over ranks outside of a training."""

import os
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist


class Launch(NamedTuple):
    """What started this process, and as which of how many ranks."""

    by: Literal["torchrun", "srun", ""]  # "" = neither: it is the only one
    rank: int = 0
    world: int = 1  # ranks on all nodes
    local_rank: int = 0  # on this node
    nodes: int = 1


def launch() -> Launch:
    """What the environment says of how this process was started.

    Raises:
        ValueError: in a SLURM job of several tasks whose ranks srun did not start, or whose nodes differ in tasks.
    """
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


def rank() -> int:
    """This process's rank, counted from 0, among those that torchrun, srun or Lightning (trainer.devices) started.

    Lightning starts ranks on one machine, by the same command line, with LOCAL_RANK in their environment.
    """
    start = launch()
    return start.rank if start.by else int(os.environ.get("LOCAL_RANK", "0"))


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is this rank's GPU where there are GPUs, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if name != "auto":
        try:
            torch.empty(0, device=(device := torch.device(name)))
        except (RuntimeError, AssertionError, ValueError):  # each kind of device raises another
            raise ValueError(f"device={name} is none that torch finds here: pass device=auto, cpu or cuda") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda", launch().local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def precision(device: torch.device) -> str:
    """How this device computes in float32."""
    allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    fast = allowed and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return "float32 (TF32)" if fast else "float32"


def join_ranks() -> tuple[int, int]:
    """Join the group of ranks that torchrun or srun started, if any; returns (rank, world size)."""
    start = launch()
    if start.world == 1:
        return 0, 1
    if start.by == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        address = f"tcp://{slurm.main_address}:{slurm.main_port}"
        dist.init_process_group("gloo", address, rank=start.rank, world_size=start.world)
    else:
        dist.init_process_group("gloo")  # for CPU memory, in which the results are that ranks send
    return start.rank, start.world


def gather(value: Any) -> list[Any]:
    """All ranks' values on rank 0, an empty list on the others; the group ends with it."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    dist.destroy_process_group()
    return values or []


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a value over the ranks of a training run."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
