"""trainer.checkpoints=sharded: each rank writes its own part, while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ldm.runtime.files import TEMPORARY, atomic_write, remove_leftovers
from ldm.runtime.wrong import first_line
from ldm.sharded_checkpoint import REST, remove, seal, split


class ShardedSaves:
    """Saves checkpoints as folders, one at a time.

    What is saved is copied to the CPU's memory first; training waits for that alone. A thread then writes it beside its
    place, and rank 0 renames it once all ranks have written and flushed theirs: what is there is whole.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.thread = ThreadPoolExecutor(1)
        self.pending: tuple[Path, Future[None]] | None = None

    def start(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Begin to save a checkpoint, whose large tensors are sharded; every rank calls it.

        Raises:
            OSError: if the save before it has failed.
        """
        self.finish()
        # of the CPUs, and no other messages'
        self.group = self.group or dist.new_group(backend="gloo")
        rest, tensors = split(checkpoint)
        beside = path.with_name(f".{path.name}.saving{TEMPORARY}")
        if dist.get_rank() == 0:
            remove_leftovers(path)
            with atomic_write(beside / REST) as file:
                torch.save(rest, file)
        dist.barrier(self.group)
        writer = dcp.FileSystemWriter(beside, overwrite=False)
        written = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
        assert isinstance(written, Future)
        self.pending = path, self.thread.submit(_commit, written, beside, path)

    def finish(self) -> None:
        """Wait until what was begun is there.

        Raises:
            OSError: if it could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        path, done = pending
        try:
            done.result()
        except CheckpointException as failed:
            rank, (error, _) = next(iter(failed.failures.items()))
            raise OSError(
                f"{path}: rank {rank} could not write it ({first_line(error)}): make room, then run the same command"
            ) from None


def _commit(written: "Future[Any]", beside: Path, path: Path) -> None:
    written.result()
    if dist.get_rank() != 0:
        return
    seal(beside)
    if path.exists():  # a damaged one, from which the run has gone back
        remove(path)
    beside.rename(path)
