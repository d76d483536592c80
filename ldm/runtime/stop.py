"""One owner of the signals by which a cluster asks a job to make room: SIGUSR1 and SIGTERM.

A handler notes the signal, nothing else: the training loop finishes its batch, saves, and comes back to `requeue`.
So a second signal during a save changes nothing.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = {signal.SIGUSR1, signal.SIGTERM}
if "SUBMITIT_EXECUTOR" in os.environ:  # a sweep's launcher asks by this one
    SIGNALS.add(signal.SIGUSR2)

_received: list[int] = []
_before: dict[int, Any] = {}  # handlers that were there first


class StoppedError(Exception):
    """Training was asked to stop, and has saved."""

    def __init__(self, signum: int) -> None:
        self.signum, self.outcome = signum, ""
        super().__init__(f"stopped by {signal.Signals(signum).name}")


def listen() -> None:
    """Own the signals from here on, if nobody here does yet."""
    for signum in SIGNALS - _before.keys():
        _before[signum] = signal.signal(signum, lambda number, _: _received.append(number))


def unlisten() -> None:
    """Give them back to whoever had them."""
    _received.clear()
    while _before:
        signal.signal(*_before.popitem())


def asked() -> int | None:
    """The first signal that asked to stop, or None."""
    return _received[0] if _received else None


def requeue(signum: int) -> str:
    """Have SLURM start this batch job again, unless it is being cancelled; says what came of it, in words.

    A launcher that came first (submitit, in a sweep) requeues by its own means.
    """
    if _launchers(signum):
        return "its launcher requeues it"
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job is None:
        return "the same command goes on from there"
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job += f"_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        state = _slurm("squeue", "--noheader", "--format", "%T", "--jobs", job)
        if state not in ("RUNNING", "PREEMPTED", "SUSPENDED"):  # cancelled, or out of time: it is to end
            return f"job {job} is {state.lower() or 'gone'}: not requeued; the same command goes on from there"
        _slurm("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()
        return f"job {job} could not be requeued ({why}); the same command goes on from there"
    return f"job {job} is requeued"


def hand_over(signum: int) -> None:
    """Let a launcher's own handler do its part, now that all is saved: submitit's requeues the job and ends it."""
    if handler := _launchers(signum):
        handler(signum, None)


def _launchers(signum: int) -> Callable[[int, None], None] | None:
    handler = _before.get(signum)
    return handler if signum == signal.SIGUSR2 and callable(handler) else None


def _slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
