"""What every refusal owes a user: one line, soon, with nothing changed."""

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ldm.commands.error_lines import USER_ERRORS, one_line

SECONDS = 20  # of one case, on a busy machine


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


def contents(folder: Path) -> dict[str, str]:
    """Each file and link below a folder, with a digest of what it holds."""

    def state(path: Path) -> str:
        if path.is_symlink():
            return f"-> {path.readlink()}"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"

    return {str(path.relative_to(folder)): state(path) for path in folder.rglob("*") if not path.is_dir()}


def assert_refused(attempt: Callable[[], Any], said: str, folder: Path, named: str = "") -> None:
    """The attempt ends in one line that holds both texts, and changes no file of the folder."""
    before = contents(folder)
    with time_limit(), pytest.raises(USER_ERRORS) as info:
        attempt()
    assert not isinstance(info.value, TimeoutError), info.value
    line = one_line(info.value)
    assert "\n" not in line
    assert len(line) < 600
    assert said in line, line
    assert named in line, line
    assert contents(folder) == before
