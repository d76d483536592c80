"""What this machine can hold, asked before anything is allocated."""

import math
import os
from pathlib import Path


def check_fits(wanted: float, what: str, fix: str) -> None:
    """Hold what a command will allocate to the memory there is.

    Args:
        wanted: bytes, at least so many
        what: that takes them, as "batch_size=1000000 of 3 x 256 x 256"
        fix: what to do, as "lower batch_size="

    Raises:
        ValueError: if there is less here.
    """
    there = machine_memory()
    if wanted > there:
        need, have = f"{wanted / 2**30:,.1f}", f"{there / 2**30:.1f}"
        raise ValueError(f"{what} takes {need} GiB at least, there are {have} here: {fix}")


def machine_memory() -> int:
    """Bytes that this process may use: the machine's, or what its container or its SLURM job has of them."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
        try:
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    if (of_job := os.environ.get("SLURM_MEM_PER_NODE", "")).isdecimal() and int(of_job) > 0:  # 0: the whole node
        limits.append(int(of_job) * 2**20)
    return min(limits)


def check_batch(batch_size: int, *shape: int) -> None:
    """ValueError if a batch of float32 tensors of this shape does not fit into this machine's memory."""
    check_fits(4 * batch_size * math.prod(shape), f"batch_size={batch_size}", "lower batch_size=")
