"""Data loaders whose workers leave signals to their parent, however they were started.

SLURM, torchrun and a terminal send a signal to all processes of a job. The training process notes it, finishes its
batch, saves, and ends its workers; a worker that ended at once would take that batch with it.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from functools import cache
from multiprocessing import forkserver
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LAST = -100  # of what multiprocessing does at the end of a process; it waits for its queues at -5
LONGEST = 70  # bytes of the folder for temporary files, in which workers make sockets: their paths end at 107


def loader(data: Any, num_workers: int, **options: Any) -> "DataLoader[Any]":
    """A DataLoader with so many workers; 0 = this process reads.

    Raises:
        ValueError: if its workers could not be talked to.
    """
    folder = tempfile.gettempdir()
    if num_workers > 0 and len(os.fsencode(folder)) > LONGEST:
        raise ValueError(
            f"TMPDIR={folder} is too long a path for the sockets of data workers: set a shorter one, or pass "
            "num_workers=0"
        )
    if num_workers > 0 and multiprocessing.get_start_method() == "forkserver":
        start_server()
    if num_workers > 0:
        _end_workers_at_exit()
    return DataLoader(data, num_workers=num_workers, worker_init_fn=prepare, **options)


@cache
def _end_workers_at_exit() -> None:
    """End what workers are left when this process ends, before Python waits for them: it asks by SIGTERM, which they
    ignore."""

    def end() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where torch would raise that a worker was killed
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(end)


def start_server() -> None:
    """Start the process that workers are forked from (Python's default from 3.14 on), if it does not run yet.

    It inherits that signals are ignored. Else it would end by one, and its workers with it.
    """
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in IGNORED}
    try:
        forkserver.ensure_running()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def prepare(_: int) -> None:
    """In a worker: ignore the signals that the parent answers to, and end without Python's finalization.

    A worker that was spawned would go through it, and there Python ends threads that still run torch's code, as the one
    that sends the batches, by an exception that this code lets nobody catch: the process aborts. One that was forked
    ends by os._exit, too.
    """
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    Finalize(None, _exit, exitpriority=LAST)


def _exit() -> None:
    if sys.exc_info()[0] is None:  # else multiprocessing has an error to print
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
