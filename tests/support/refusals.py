"""What every refusal owes a user: one line, soon, with nothing changed."""

import hashlib
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ldm.commands.error_lines import USER_ERRORS, is_said, one_line

SECONDS = 20  # of one case, on a busy machine
MOST = 1.0  # GiB that one case may take, beside what the process has


@contextmanager
def time_limit(seconds: int = SECONDS) -> Iterator[None]:
    """TimeoutError after so many seconds: a case that hangs fails, and stops nothing else."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(most: float = MOST) -> Iterator[None]:
    """AssertionError if the block has taken more GiB at any moment than were taken before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before = _peak()
    yield
    assert _peak() - before < most, f"it took {_peak() - before:.1f} GiB"


def _peak() -> float:
    """GiB of this process at most, since it was last cleared."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 2**20


def contents(folder: Path) -> dict[str, str]:
    """Each file and link below a folder, with a digest of what it holds."""

    def state(path: Path) -> str:
        if path.is_symlink():
            return f"-> {path.readlink()}"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"

    return {str(path.relative_to(folder)): state(path) for path in folder.rglob("*") if not path.is_dir()}


def assert_refused(attempt: Callable[[], Any], said: str, folder: Path, named: str = "") -> None:
    """The attempt ends in one line that holds both texts, takes little memory, and changes no file of the folder."""
    before = contents(folder)
    with time_limit(), memory_limit(), pytest.raises(USER_ERRORS) as info:
        attempt()
    assert not isinstance(info.value, TimeoutError), info.value
    assert is_said(info.value), "its message is a library's, or one that nobody raised on purpose"
    line = one_line(info.value)
    assert "\n" not in line
    assert len(line) < 600
    assert said in line, line
    assert named in line, line
    assert contents(folder) == before
