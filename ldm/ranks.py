"""Devices and ranks for the commands that do not train (under torchrun, or alone)."""

import os
from typing import Any

import torch
import torch.distributed as dist


def pick_device(name: str) -> torch.device:
    """ "auto" is this rank's GPU if there is one, else the CPU."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={name}, but torch finds no CUDA device here: pass device=auto")
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def join_ranks() -> tuple[int, int]:
    """(rank, world size), joining the group that torchrun announces, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    dist.init_process_group("gloo")  # it carries finished results only, from CPU memory
    return dist.get_rank(), dist.get_world_size()


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
