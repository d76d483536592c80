"""trainer.checkpoints=sharded: each rank writes its own part, while training goes on."""

import errno
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ldm.runtime.files import TEMPORARY, atomic_write
from ldm.runtime.wrong import first_line
from ldm.sharded_checkpoint import REST, flush, seal, split


class ShardedSaves:
    """Saves checkpoints as folders, one at a time.

    What is saved is copied to the CPU's memory first; training waits for that alone. A thread then writes it beside its
    place, and rank 0 renames it once all ranks have written and flushed theirs: what is there is whole.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.thread = ThreadPoolExecutor(1)
        self.pending: tuple[Path, Future[None]] | None = None

    def check(self, folder: Path) -> None:
        """Look whether all ranks see what rank 0 writes into a folder; every rank calls it.

        Raises:
            ValueError: if one does not: its parts would lie on its own disk, and no checkpoint would be whole.
        """
        self.group = self.group or dist.new_group(backend="gloo")
        name = [secrets.token_hex(8)]
        dist.broadcast_object_list(name, group=self.group)
        mark = folder / f".{name[0]}{TEMPORARY}"
        if dist.get_rank() == 0:
            mark.touch()
        dist.barrier(self.group)
        seen = torch.tensor(mark.exists())
        dist.all_reduce(seen, dist.ReduceOp.MIN, self.group)
        if dist.get_rank() == 0:
            mark.unlink()
        if not seen:
            raise ValueError(
                f"trainer.checkpoints=sharded: not all ranks see what rank 0 writes into {folder}: put it on a disk "
                "that the nodes share, or pass trainer.checkpoints=whole"
            )

    def start(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Begin to save a checkpoint, whose large tensors are sharded; every rank calls it, once it has finished the
        one before, and rank 0 has removed what a killed process had left of one."""
        # of the CPUs, and no other messages'
        self.group = self.group or dist.new_group(backend="gloo")
        rest, tensors = split(checkpoint)
        beside = path.with_name(f".{path.name}.saving{TEMPORARY}")
        if dist.get_rank() == 0:
            with atomic_write(beside / REST) as file:
                torch.save(rest, file)
        dist.barrier(self.group)
        # without copies ahead: for them its thread would open the first GPU on every rank
        writer = dcp.FileSystemWriter(beside, overwrite=False, per_thread_copy_ahead=0)
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
        except CheckpointException as failed:  # which is no Exception
            raise _told(next(iter(failed.failures.values()))[0], path) from None
        except Exception as error:
            raise _told(error, path) from None


def _told(error: BaseException, path: Path) -> OSError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "make room, then run the same command" if full else "the same command goes on from the save before it"
    return OSError(f"{path} could not be saved ({first_line(error)}): {fix}")


def _commit(written: "Future[Any]", beside: Path, path: Path) -> None:
    metadata = written.result()
    if dist.get_rank() != 0:
        return
    seal(beside, metadata)
    path.unlink(missing_ok=True)  # a damaged file, from which the run has gone back; `Saves` has removed a folder
    beside.rename(path)
    flush(path.parent)
