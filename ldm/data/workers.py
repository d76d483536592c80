"""Data loaders whose workers leave signals to their parent, however they were started.

SLURM, torchrun and a terminal send a signal to all processes of a job. The training process notes it, finishes its
batch, saves, and ends its workers; a worker that ended at once would take that batch with it.
"""

import os
import signal
import tempfile
from typing import Any

from torch.utils.data import DataLoader

LONGEST = 70  # bytes of the folder for temporary files, in which workers make sockets: their paths end at 107


def loader(data: Any, num_workers: int, **options: Any) -> "DataLoader[Any]":
    """A DataLoader with so many workers; 0 = this process reads.

    Raises:
        ValueError: if its workers could not be talked to, or are more than this machine could serve.
    """
    folder = tempfile.gettempdir()
    if num_workers > 0 and len(os.fsencode(folder)) > LONGEST:
        raise ValueError(
            f"TMPDIR={folder} is too long a path for the sockets of data workers: set a shorter one, or pass "
            "num_workers=0"
        )
    cores = os.cpu_count() or 1
    if num_workers > 16 * cores:
        raise ValueError(f"num_workers={num_workers} is too much for the {cores} cores of this machine")
    return DataLoader(data, num_workers=num_workers, worker_init_fn=leave_signals, **options)


def leave_signals(_: int) -> None:
    """In a worker: ignore what the parent answers to."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
