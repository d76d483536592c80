"""What this machine can hold, asked before anything is allocated."""

import math
import os


def check_fits(wanted: float, what: str, fix: str) -> None:
    """Hold what a command will allocate to the memory there is.

    Args:
        wanted: bytes, at least so many
        what: that takes them, as "batch_size=1000000 of 3 x 256 x 256"
        fix: what to do, as "lower batch_size="

    Raises:
        ValueError: if this machine has less.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > there:
        need, have = f"{wanted / 2**30:,.1f}", f"{there / 2**30:.1f}"
        raise ValueError(f"{what} takes {need} GiB at least, this machine has {have}: {fix}")


def check_batch(batch_size: int, *shape: int) -> None:
    """ValueError if a batch of float32 tensors of this shape does not fit into this machine's memory."""
    check_fits(4 * batch_size * math.prod(shape), f"batch_size={batch_size}", "lower batch_size=")
