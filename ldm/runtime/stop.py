"""One owner of the signals by which somebody asks a training run to stop: a cluster's SIGUSR1 and SIGTERM, and Ctrl-C.

A handler notes the signal and does nothing else: the training loop finishes its batch, saves, and then calls `requeue`.
So a second signal during a save changes nothing, except a second Ctrl-C, which ends the process at once.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = {signal.SIGUSR1, signal.SIGTERM}
if "SUBMITIT_EXECUTOR" in os.environ:  # a sweep's launcher asks by this one
    SIGNALS.add(signal.SIGUSR2)
# seconds within which a Ctrl-C is the same one: torchrun, `ldm probe` and the terminal each send it to a rank
SAME_PRESS = 1.0
RUNNING = ("RUNNING", "PREEMPTED", "SUSPENDED")  # states of a SLURM job that is not about to end

_received: list[int] = []
_before: dict[int, Any] = {}  # the handlers that these replaced, by signal


class StoppedError(Exception):
    """Training was asked to stop, and has saved."""

    def __init__(self, signum: int) -> None:
        self.signum, self.outcome = signum, ""
        super().__init__(f"stopped by {signal.Signals(signum).name}")


def listen() -> None:
    """Own the cluster's signals from here on, if this process does not own them yet."""
    for signum in SIGNALS - _before.keys():
        _before[signum] = signal.signal(signum, lambda number, _: _received.append(number))


def unlisten() -> None:
    """Give the signals back to the handlers that had them."""
    _received.clear()
    while _before:
        signal.signal(*_before.popitem())


@contextmanager
def interrupts_noted() -> Iterator[None]:
    """Within it, a first Ctrl-C is noted as the cluster's signals are; the next press raises KeyboardInterrupt.

    Only where there is something to save: elsewhere a Ctrl-C ends the process as usual, as it does at the end of this
    block if it came too late for anybody to ask.
    """
    pressed, owner = [0.0], os.getpid()

    def note(signum: int, _: Any) -> None:
        if os.getpid() != owner:  # a data worker, forked with this handler: its parent ends it
            return
        if signum not in _received:
            pressed[0] = time.monotonic()
            _received.append(signum)
            said = "stopping: this batch is finished and saved first; another Ctrl-C ends at once"
            threading.Thread(target=log.warning, args=(said,)).start()  # this thread may hold the log's lock
        elif time.monotonic() - pressed[0] > SAME_PRESS:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
        if signal.SIGINT in _received:
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


def asked() -> int | None:
    """The first signal that asked to stop, or None."""
    return _received[0] if _received else None


def requeue(signum: int) -> str:
    """Have SLURM start this batch job again, unless it is being cancelled; says in words what came of it.

    Ctrl-C requeues nothing: a person is there, and wants the run to stop. A launcher that came first (submitit, in a
    sweep) requeues by its own means.
    """
    if _launchers(signum):
        return "its launcher requeues it"
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job is None or signum == signal.SIGINT:
        return "the same command goes on from there"
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job += f"_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return _requeue_job(job)


def _requeue_job(job: str) -> str:
    """Requeue the job if nobody has. Whether it worked is read from the count of its restarts, not from scontrol's exit
    status, which may be of a scontrol that was ended before it had its answer."""
    restarts_before = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    why = ""
    try:
        state, restarts = _look_up(job)
        if restarts <= restarts_before:
            if state not in RUNNING:  # cancelled, or out of time: it is to end
                return f"job {job} is {state.lower()}: not requeued; the same command goes on from there"
            try:
                _slurm("scontrol", "requeue", job)
            except (OSError, subprocess.SubprocessError) as error:
                why = _reason(error)
            _, restarts = _look_up(job)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why, restarts = why or _reason(error), 0
    if restarts > restarts_before:
        return f"job {job} is requeued"
    return f"job {job} could not be requeued ({why}); the same command goes on from there"


def _look_up(job: str) -> tuple[str, int]:
    """A job's state and how often it was restarted.

    Raises:
        ValueError: if SLURM does not say.
    """
    fields = dict(field.partition("=")[::2] for field in _slurm("scontrol", "show", "--oneliner", "job", job).split())
    if not {"JobState", "Restarts"} <= fields.keys():
        raise ValueError(f"scontrol show job {job} tells no state")
    return fields["JobState"], int(fields["Restarts"])


def _reason(error: Exception) -> str:
    return (getattr(error, "stderr", None) or str(error)).strip()


def hand_over(signum: int) -> None:
    """Let a launcher's own handler do its part, now that all is saved: submitit's requeues the job and ends it."""
    if handler := _launchers(signum):
        handler(signum, None)


def _launchers(signum: int) -> Callable[[int, None], None] | None:
    """The handler that a sweep's launcher had installed for this signal, if any."""
    handler = _before.get(signum)
    return handler if signum == signal.SIGUSR2 and callable(handler) else None


def _slurm(*command: str) -> str:
    """What a command of SLURM's prints. SLURM ends a requeued job's processes, this command among them, by SIGTERM: it
    starts with that ignored, as this process does for as long. All is saved by now."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    finally:
        signal.signal(signal.SIGTERM, before)
