"""Object stores (s3://, gs:// and others that fsspec knows), and copies here of what lies there.

An upload is seen by others when it is whole, as these stores promise.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ldm.runtime.files import atomic_write
from ldm.runtime.wrong import first_line

log = logging.getLogger(__name__)

ADDRESS = re.compile(r"(?!file:|local:|https?:|data:)[a-z][a-z0-9+.-]*://[^/].*")
TIMES = ("LastModified", "updated", "last_modified", "mtime", "created")  # as stores name when a file was written
FETCHED = ".fetched.txt"  # of a copy: the files that came from the store
TRIES = 3  # to fetch a folder in which somebody writes
CACHE = "LDM_CACHE"  # the environment's name for the folder of copies


class StoreError(ValueError):
    """A store can't be reached, or refuses."""


class ChangedError(StoreError):
    """A file was removed, or replaced, since the store listed it: whoever writes there prunes checkpoints."""


class Entry(NamedTuple):
    """A file of a store: its size, and when it was written, in seconds since 1970; 0 where the store does not say."""

    size: int
    time: float


def is_address(value: object) -> bool:
    """Whether a config's value is a place in an object store."""
    return isinstance(value, str) and ADDRESS.fullmatch(value) is not None


class Store:
    """A folder of an object store.

    Args:
        address: s3://bucket/folder
        key:     of the config that names it, for errors

    Raises:
        StoreError: here and in all that it does, naming the address.
    """

    def __init__(self, address: str, key: str = "store") -> None:
        import fsspec

        self.address, self.key = address.rstrip("/"), key
        with self._errors():
            try:
                self.fs, self.path = fsspec.core.url_to_fs(self.address)
            except ImportError as error:
                raise ValueError(f"{first_line(error)}: pip install 'ldm[stores]'") from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ChangedError:
            raise
        except Exception as error:  # of the network, of credentials, of the store: each library has its own
            said = first_line(error) or type(error).__name__
            raise StoreError(f"{self.key}={self.address}: {said[:300]}") from None

    def names(self) -> dict[str, Entry]:
        """The files below it, by their paths from here; no hidden ones, as none is uploaded.

        Raises:
            StoreError: also for a name that would lead out of a folder.
        """
        with self._errors():
            self.fs.invalidate_cache()
            found = self.fs.find(self.path, detail=True)
            entries = {}
            for path, about in found.items():
                name = str(path)[len(self.path) :].lstrip("/")
                if name == "" or name.endswith("/"):  # what a console leaves where it has made a folder
                    continue
                if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or not name.isprintable():
                    raise ValueError(f"it holds {name!r}, which is no name of a file")
                if not any(part.startswith(".") for part in name.split("/")):
                    entries[name] = Entry(int(about.get("size") or 0), _seconds(about))
            return entries

    def is_file(self) -> bool:
        """Whether it is one file, and no folder."""
        with self._errors():
            return bool(self.fs.isfile(self.path))

    def put(self, file: Path, name: str) -> float:
        """Upload a file; returns when it was written there, as `names` has it."""
        with self._errors():
            self.fs.put_file(str(file), f"{self.path}/{name}")
            self.fs.invalidate_cache()
            return _seconds(self.fs.info(f"{self.path}/{name}"))

    def get(self, name: str, entry: Entry, file: Path) -> None:
        """Download a file ("" is this place itself), which is there when it is whole, as old as in the store."""
        changed = ChangedError(f"{self.key}={self.address}: {name or self.path} has changed since it was listed")
        with self._errors(), atomic_write(file) as here:
            try:
                with self.fs.open(f"{self.path}/{name}" if name else self.path, "rb") as there:
                    shutil.copyfileobj(there, here, 1 << 24)
            except OSError as error:
                # s3fs calls a file busy that was replaced
                if not isinstance(error, FileNotFoundError) and error.errno != errno.EBUSY:
                    raise
                raise changed from None
            if here.tell() != entry.size:
                raise changed
        if entry.time:
            os.utime(file, (entry.time, entry.time))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors():
            try:
                self.fs.rm_file(f"{self.path}/{name}")
            except FileNotFoundError:
                return


def _seconds(about: dict[str, Any]) -> float:
    value = next((about[key] for key in TIMES if about.get(key)), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def local_copy(address: str, key: str) -> Path:
    """A copy of a file or a folder of a store, in $LDM_CACHE (~/.cache/ldm): what has changed is fetched, what is no
    longer there goes. Of processes on a machine one fetches, and the others wait.

    Raises:
        StoreError: if nothing is there, or it can't be fetched.
    """
    store = Store(address, key)
    scheme, _, rest = store.address.partition("://")
    parts = [part for part in rest.split("/") if part]
    if {".", ".."} & set(parts):
        raise StoreError(f"{key}={address} leads to another folder by . or ..: name that one")
    copy = Path(os.environ.get(CACHE) or Path.home() / ".cache/ldm", "stores", scheme, *parts)
    with one_at_a_time(copy):
        as_it_is_listed(lambda: _copy(store, copy))
    return copy


def as_it_is_listed(fetch: Callable[[], None]) -> None:
    """Fetch what a store lists, and list it again where it has changed meanwhile; ChangedError if it does each time."""
    for left in range(TRIES - 1, -1, -1):
        try:
            fetch()
            return
        except ChangedError as changed:
            if not left:
                raise
            log.info("%s: listed again", changed)


def _copy(store: Store, copy: Path) -> None:
    if store.is_file():
        store.fs.invalidate_cache()
        about = store.fs.info(store.path)
        _bring(store, "", Entry(int(about["size"]), _seconds(about)), copy)
        return
    entries = store.names()
    if not entries:
        raise StoreError(f"{store.key}={store.address} holds nothing")
    log.info("%s=%s: copied into %s", store.key, store.address, copy)
    for name in sorted(entries, key=after_what_it_names):
        _bring(store, name, entries[name], copy / name)
    fetched = copy / FETCHED  # what commands write beside, as verified.json, stays
    before = set(fetched.read_text().splitlines()) if fetched.exists() else set()
    for name in before - entries.keys():
        (copy / name).unlink(missing_ok=True)
    with atomic_write(fetched) as file:
        file.write("\n".join(sorted(entries)).encode())


def _bring(store: Store, name: str, entry: Entry, file: Path) -> None:
    """Fetch a file, unless it is here as it is there."""
    if file.is_file() and entry.time:
        status = file.stat()
        if status.st_size == entry.size and abs(status.st_mtime - entry.time) < 1e-3:
            return
    store.get(name, entry, file)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Of the processes on this machine that work on a path, one at a time."""
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    name = Path(tempfile.gettempdir(), f"ldm-{os.getuid()}-{digest}.lock")
    with os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed
        yield


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of a folder's files by their paths in it, while others write and remove there: what is hidden is
    still being written, or a lock."""
    states = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith(".") or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # gone meanwhile
                status = path.stat()
                states[path.relative_to(folder).as_posix()] = status.st_size, status.st_mtime_ns
    return states


def after_what_it_names(name: str) -> tuple[bool, bool, str]:
    """An order in which a file comes after those that it names: a shard's card after its tar, the manifest last."""
    return name.endswith(".json"), name.endswith("/manifest.json") or name == "manifest.json", name
