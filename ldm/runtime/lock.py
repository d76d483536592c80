"""One command at a time in a run folder: two would write each other's files.

The folder's lock names its holder: host, process, since when. A holder that is dead gives way: on this machine by its
process, on others once its file is no longer touched, and at once where SLURM has started the same job again.
"""

import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import ClassVar

from ldm.runtime.files import CONFIG, TEMPORARY, write_once
from ldm.runtime.ranges import Count, Natural
from ldm.runtime.schema import DamagedFileError, JsonFile

log = logging.getLogger(__name__)

BEAT = 20.0  # seconds between two touches of the file
SILENT = 180.0  # seconds without a touch after which a holder on another host is dead; clocks may differ by less


class Holder(JsonFile):
    """Who holds a lock.

    where:    what can see the process: this start of the machine, and in it this container
    began:    of the process, in ticks since its machine started, which tells it from a later one of the same number;
              0 where the system does not say
    since:    date and time
    job:      of SLURM; "" outside
    restarts: how often SLURM had started that job again; two steps of one start may both be alive
    token:    of this holding alone
    """

    fix: ClassVar[str] = "remove it, if no command runs in this folder"

    command: str
    host: str
    where: str
    pid: Count
    began: Natural
    since: str
    job: str
    restarts: str
    token: str

    @classmethod
    def me(cls, command: str) -> "Holder":
        return cls(
            command=command,
            host=socket.gethostname(),
            where=_where(),
            pid=os.getpid(),
            began=_began(os.getpid()) or 0,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=os.environ.get("SLURM_RESTART_COUNT", "0"),
            token=secrets.token_hex(8),
        )

    def is_dead(self, silent: float) -> bool:
        """Whether it has ended; `silent`: seconds since it last touched its file."""
        if self.where == _where():
            return _began(self.pid) is None or (self.began > 0 and _began(self.pid) != self.began)
        same_job = self.job != "" and self.job == os.environ.get("SLURM_JOB_ID")
        return silent > SILENT or (same_job and self.restarts != os.environ.get("SLURM_RESTART_COUNT", "0"))


@contextmanager
def held(folder: Path, command: str, slot: str = "") -> Iterator[None]:
    """Hold a folder's lock; what a dead holder left half written is removed.

    Args:
        folder: the run folder
        command: as the message to the other one names it
        slot: of commands that share a folder, each of which has its own part of it; "" = it is one's alone

    Raises:
        ValueError: naming the holder, if there is one.
    """
    path = folder / (f".lock-{slot}" if slot else ".lock")
    mine = Holder.me(command)
    while True:
        with suppress(FileNotFoundError):  # its holder has just ended
            if write_once(path, mine.model_dump_json().encode()) == mine.model_dump_json().encode():
                break
        _take_over(path, folder, slot)
    ended = threading.Event()
    beat = threading.Thread(target=_touch, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(OSError, DamagedFileError):
            if Holder.read(path).token == mine.token:  # else another host took this process for dead
                path.unlink()


def _take_over(path: Path, folder: Path, slot: str) -> None:
    """Remove the lock of a dead holder; ValueError if it is alive."""
    try:
        before = path.stat()
        holder = Holder.read(path)
        silent = _silence(path, holder)
    except FileNotFoundError:
        return
    except DamagedFileError:
        if not path.exists():
            return
        if time.time() - before.st_mtime < SILENT:
            raise
        holder, silent = None, SILENT
    if holder is not None and not holder.is_dead(silent):
        raise ValueError(
            f"{folder} is in use by ldm {holder.command}, process {holder.pid} on {holder.host}, since {holder.since}: "
            f"wait for it, or choose another run= (if it has ended, remove {path})"
        )
    moved = None
    aside = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.rename(aside)  # of several that find it dead, one succeeds
    except FileNotFoundError:
        return
    with suppress(DamagedFileError):
        moved = Holder.read(aside).token
    if moved != (None if holder is None else holder.token):  # another one's, who was faster
        with suppress(FileExistsError):
            os.link(aside, path)
    elif holder is not None:
        log.info("%s: ldm %s, process %d on %s, did not end its work here: this command takes over", folder,
                 holder.command, holder.pid, holder.host)  # fmt: skip
        if not slot:
            remove_unfinished(folder)
    aside.unlink(missing_ok=True)


def _silence(path: Path, holder: Holder) -> float:
    """Seconds since a holder touched its lock. Of one on another host, where no process can be looked up, it is waited
    for the next touch, or until there has been none for so long that it is dead."""
    seen = path.stat().st_mtime
    silent = time.time() - seen
    if holder.where == _where() or holder.is_dead(silent):
        return silent
    log.info("%s is held from %s: waiting up to %.0f s to see whether ldm %s still runs there", path, holder.host,
             SILENT - silent, holder.command)  # fmt: skip
    while (silent := time.time() - seen) <= SILENT:
        time.sleep(min(1.0, SILENT / 10))
        if path.stat().st_mtime != seen:
            return 0.0
    return silent


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of a folder that a killed process has left; folders that have a config.yaml or a lock,
    as the points of a sweep, are not its own."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if not any((path / name).exists() for name in (CONFIG, ".lock")):
                remove_unfinished(path)
        elif path.name.startswith(".") and path.name.endswith(TEMPORARY) and not path.name.startswith(".lock"):
            path.unlink(missing_ok=True)


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


@cache
def _where() -> str:
    """This start of this machine, and the namespace of its processes: containers may have one name, and machines too.

    The host's name, where the system does not say.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _began(pid: int) -> int | None:
    """When a process of this machine began, in ticks; 0 where the system does not say; None if there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = re.sub(r"^.*\) ", "", text, flags=re.DOTALL).split()
    return None if state in ("Z", "X") else int(fields[18])
