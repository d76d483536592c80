"""Files that are complete or absent: they are written under another name, flushed to disk, then renamed."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

CONFIG = "config.yaml"  # of a run folder: who made it, and with which options
TEMPORARY = ".tmp"  # how the names of files end that are being written


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file in path's folder; rename it to path if the block succeeds, remove it if it fails.

    Raises:
        OSError: that names path and the fix, if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would keep others of a lab from reading the results
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save raises another one on top
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(cause.errno, f"{cause.strerror}: make room, then run the same command", str(path)) from None
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders that a killed process has left, which was writing to this path."""
    for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def write_once(path: Path, content: bytes) -> bytes:
    """Write a file if it does not exist; returns its content. Of processes that do so at once, one succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        with suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links, where its content may be seen before it is whole
                with path.open("xb") as file:
                    file.write(content)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path.read_bytes()


def _beside(path: Path) -> tuple[int, str]:
    """A new hidden file in path's folder, whose name is at most as long as a file system allows."""
    name = os.fsdecode(os.fsencode(path.name)[:200])  # file systems count bytes
    return tempfile.mkstemp(dir=path.parent, prefix=f".{name}.", suffix=TEMPORARY)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}: the keys as they are written on a command line."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_folder(path: str | os.PathLike[str], key: str) -> Path:
    """The path of a folder that exists; ValueError, naming the config's key, if it does not."""
    folder = Path(path)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{key}={path} {problem} (looked from {Path.cwd()})")
    return folder
