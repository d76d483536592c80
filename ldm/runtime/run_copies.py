"""A run's folder with a copy in an object store.

What names other files, a manifest or a sharded checkpoint's description, is uploaded after them.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ldm.runtime.files import CONFIG, atomic_write
from ldm.runtime.stores import Store, StoreError, after_what_it_names, as_it_is_listed, files_of, one_at_a_time

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two looks at a run's folder
TRIES = 3  # of the last upload


class Synced:
    """RUN/.store.json: the states of files, here and in the store, when they were last the same.

    Args:
        folder:  the run's
        address: the copy's; of another one, nothing is known
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.path, self.address = folder / ".store.json", address
        self.states: dict[str, tuple[int, int, float]] = {}  # size and time here, time there
        with suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged: as if nothing were known
            held = json.loads(self.path.read_text())
            if held["address"] == address:
                self.states = {str(name): (int(a), int(b), float(c)) for name, (a, b, c) in held["files"].items()}

    def is_here(self, name: str, state: tuple[int, int] | None) -> bool:
        """Whether a file is still as it was then."""
        return name in self.states and self.states[name][:2] == state

    def write(self) -> None:
        with atomic_write(self.path) as file:
            file.write(json.dumps({"address": self.address, "files": self.states}).encode())


def bring_run(store: Store, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Fetch what a run's folder lacks, as on a machine that has not seen it, and what has changed there alone; where
    both have changed, the later version stays."""
    with one_at_a_time(folder):
        as_it_is_listed(lambda: _bring_run(store, folder, wanted))


def _bring_run(store: Store, folder: Path, wanted: Callable[[str], bool]) -> None:
    synced, here = Synced(folder, store.address), files_of(folder)
    there = store.names()
    synced.states = {name: state for name, state in synced.states.items() if name in there}
    entries = {name: entry for name, entry in there.items() if wanted(name)}
    try:
        for name in sorted(entries, key=after_what_it_names):
            entry, state = entries[name], here.get(name)
            if synced.is_here(name, state):
                newer = entry.time != synced.states[name][2]
            else:
                newer = state is None or state[1] / 1e9 < entry.time
            if newer:
                store.get(name, entry, folder / name)
                status = (folder / name).stat()
                synced.states[name] = status.st_size, status.st_mtime_ns, entry.time
    finally:
        if synced.path.exists() or entries:
            synced.write()


class Mirror:
    """Keeps a store's copy of a run's folder: a thread uploads what is new or has changed, and removes there what is
    removed here meanwhile. What is not here when it begins, as shards that were removed to make room, stays there.

    Args:
        store:  the copy
        folder: the run's
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder, self.synced = store, folder, Synced(folder, store.address)
        self.ended, self.said = threading.Event(), ""
        self.thread = threading.Thread(target=self._look_again, daemon=True)

    def __enter__(self) -> "Mirror":
        here = files_of(self.folder)
        self.synced.states = {name: state for name, state in self.synced.states.items() if name in here}
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
            except (StoreError, OSError) as error:
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
            except (StoreError, OSError) as error:  # whatever happens, the next look comes
                if self.said != str(error):
                    log.warning("%s: tried again every %.0f s", error, EVERY)
                self.said = str(error)

    def upload(self) -> None:
        """Bring the copy to what the folder is now, once a command has begun there."""
        if not (self.folder / CONFIG).exists():
            return
        here = files_of(self.folder)
        new = [name for name in here if not self.synced.is_here(name, here[name])]
        gone = self.synced.states.keys() - here.keys()
        try:
            for name in sorted(new, key=after_what_it_names):
                try:
                    written = self.store.put(self.folder / name, name)
                except StoreError:
                    if (self.folder / name).exists():
                        raise
                    continue  # it was removed meanwhile
                self.synced.states[name] = *here[name], written
            for name in sorted(gone, key=after_what_it_names, reverse=True):
                self.store.remove(name)
                del self.synced.states[name]
        finally:
            if new or gone:
                self.synced.write()
