"""Object stores (s3://, gs:// and others that fsspec knows): a run's folder with a copy there, and copies here of what
lies there.

An upload is seen by others when it is whole, as these stores promise. What names other files, a manifest or a sharded
checkpoint's description, is uploaded after them.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ldm.runtime.files import CONFIG, atomic_write
from ldm.runtime.wrong import first_line

log = logging.getLogger(__name__)

ADDRESS = re.compile(r"(?!file:|local:|https?:|data:)[a-z][a-z0-9+.-]*://[^/].*")
TIMES = ("LastModified", "updated", "last_modified", "mtime", "created")  # as stores name when a file was written
EVERY = 10.0  # seconds between two looks at a run's folder
TRIES = 3  # of the last upload
CACHE = "LDM_CACHE"  # the environment's name for the folder of copies


class StoreError(ValueError):
    """A store can't be reached, or refuses."""


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
                if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or not name.isprintable():
                    raise ValueError(f"it holds {name!r}, which is no name of a file")
                if not any(part.startswith(".") for part in name.split("/")):
                    entries[name] = Entry(int(about.get("size") or 0), _seconds(about))
            return entries

    def is_file(self) -> bool:
        """Whether it is one file, and no folder."""
        with self._errors():
            return bool(self.fs.isfile(self.path))

    def put(self, file: Path, name: str) -> None:
        """Upload a file."""
        with self._errors():
            self.fs.put_file(str(file), f"{self.path}/{name}")

    def get(self, name: str, entry: Entry, file: Path) -> None:
        """Download a file ("" is this place itself), which is there when it is whole, as old as in the store."""
        with self._errors(), atomic_write(file) as here:
            with self.fs.open(f"{self.path}/{name}" if name else self.path, "rb") as there:
                shutil.copyfileobj(there, here, 1 << 24)
            if here.tell() != entry.size:
                raise ValueError(f"{name or self.path} has {here.tell()} bytes, its listing says {entry.size}")
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
    parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
    copy = Path(os.environ.get(CACHE) or Path.home() / ".cache/ldm", "stores", scheme, *parts)
    with one_at_a_time(copy):
        if store.is_file():
            store.fs.invalidate_cache()
            about = store.fs.info(store.path)
            _bring(store, "", Entry(int(about["size"]), _seconds(about)), copy)
            return copy
        entries = store.names()
        if not entries:
            raise StoreError(f"{key}={address} holds nothing")
        log.info("%s=%s: copied into %s", key, address, copy)
        for name in sorted(entries, key=_after_what_it_names):
            _bring(store, name, entries[name], copy / name)
        for name in files_of(copy).keys() - entries.keys():
            (copy / name).unlink()
    return copy


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
    with open(Path(tempfile.gettempdir(), f"ldm-{os.getuid()}-{digest}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed
        yield


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of a folder's files by their paths in it: what is hidden is still being written, or a lock."""
    states = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # gone meanwhile
            continue
        if path.is_file():
            states[name] = status.st_size, status.st_mtime_ns
    return states


def _after_what_it_names(name: str) -> tuple[bool, bool, str]:
    """An order in which a file comes after those that it names: a shard's card after its tar, the manifest last."""
    return name.endswith(".json"), name.endswith("/manifest.json") or name == "manifest.json", name


def bring_run(store: Store, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Fetch what a run's folder lacks, as on a machine that has not seen it; of two versions the later one stays."""
    with one_at_a_time(folder):
        here = files_of(folder)
        entries = {name: entry for name, entry in store.names().items() if wanted(name)}
        for name in sorted(entries, key=_after_what_it_names):
            entry, state = entries[name], here.get(name)
            if state is None or (state[0] != entry.size and state[1] / 1e9 < entry.time):
                store.get(name, entry, folder / name)


class Mirror:
    """Keeps a store's copy of a run's folder: a thread uploads what is new or has changed, and removes there what was
    removed here meanwhile.

    Args:
        store:  the copy
        folder: the run's
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.known: dict[str, tuple[int, int]] = {}  # of files that are there as they are here
        self.ended, self.said = threading.Event(), ""
        self.thread = threading.Thread(target=self._look_again, daemon=True)

    def __enter__(self) -> "Mirror":
        there = self.store.names()
        for name, (size, time_ns) in files_of(self.folder).items():
            entry = there.get(name)
            if entry is not None and entry.size == size and entry.time + 1e-3 >= time_ns / 1e9:
                self.known[name] = size, time_ns
        self.thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        """Upload what is left; an error of the store is raised only where there is none of the command's own."""
        self.ended.set()
        self.thread.join()
        for left in range(TRIES - 1, -1, -1):
            try:
                self.upload()
                return
            except StoreError as error:
                if left:
                    time.sleep(1.0)
                    continue
                problem = f"{error}; all is whole in {self.folder}: the same command uploads it"
                if ended[0] is None:
                    raise StoreError(problem) from None
                log.error("%s", problem)

    def _look_again(self) -> None:
        while not self.ended.wait(EVERY):
            try:
                self.upload()
            except StoreError as error:
                if self.said != str(error):
                    log.warning("%s: tried again every %.0f s", error, EVERY)
                self.said = str(error)

    def upload(self) -> None:
        """Bring the copy to what the folder is now, once a command has begun there."""
        if not (self.folder / CONFIG).exists():
            return
        here = files_of(self.folder)
        for name in sorted(here, key=_after_what_it_names):
            if self.known.get(name) == here[name]:
                continue
            try:
                self.store.put(self.folder / name, name)
            except StoreError:
                if (self.folder / name).exists():
                    raise
                continue  # it was removed meanwhile
            self.known[name] = here[name]
        for name in sorted(self.known.keys() - here.keys(), key=_after_what_it_names, reverse=True):
            self.store.remove(name)
            del self.known[name]
