"""Checkpoints: when they are written, what they hold of the loop's state, how the last one before a stop is made."""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO

from ldm import checkpoint as checkpoints
from ldm.runtime import stop
from ldm.runtime.files import atomic_write, remove_leftovers
from ldm.sharded_checkpoint import is_sharded_checkpoint, read_whole, remove
from ldm.training.curves import validated
from ldm.training.lightning_internals import finish_saving, restore_progress, sharded_saves, validate_now

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, then renames it.

    Lightning's own writes to the system's temporary folder. On a cluster that is another disk, so that the last move is
    a copy, which can be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file, or all of a sharded checkpoint."""
        if is_sharded_checkpoint(Path(path)):
            return read_whole(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)


class AnyRank:
    """Tells every rank, at the same call, whether any rank has raised its flag.

    The answer is that of the call before, so that no rank waits for another. The flags are exchanged by the CPUs, so
    that the GPUs' queues are not interrupted.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.sent: tuple[Any, torch.Tensor] | None = None

    def __call__(self, flag: int) -> int:
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return flag
        self.group = self.group or dist.new_group(backend="gloo")
        now, before = torch.tensor([flag]), self.sent
        self.sent = dist.all_reduce(now, dist.ReduceOp.MAX, self.group, async_op=True), now
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])


class Saves(Callback):
    """Saves after every `every` batches, before their validation, and where a signal asks training to stop.

    So a crash or a stop during a validation loses no training; a validation that was cut short is done when the run
    goes on. Of the regular checkpoints the newest `keep` stay, of those that signals asked for only the last.
    """

    def __init__(self, run: Path, steps: int, every: int, keep: int) -> None:
        self.run, self.steps, self.every, self.keep = run, steps, every, keep
        self.any_rank, self.asked, self.saved, self.latest = AnyRank(), 0, False, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (sharded := sharded_saves(trainer)) is not None:
            sharded.check(self.run)
        seen: int = pl_module.batches_seen  # type: ignore[assignment]
        first = int(trainer.strategy.broadcast(seen))
        if first != seen:  # each node has a disk of its own, and one of them an older copy of the run
            raise ValueError(
                f"rank {trainer.global_rank} would go on from batch {seen} of {self.run}, rank 0 from {first}: bring "
                "the checkpoints of all nodes to the same state"
            )
        at_save = seen > 0 and seen % self.every == 0
        due = at_save and trainer.enable_validation and not validated(self.run, seen)
        if trainer.strategy.broadcast(due):
            log.info("%s makes up for the validation after batch %d, which was cut short", self.run, seen)
            validate_now(trainer)
        elif at_save:
            pl_module.begin_stretch()  # type: ignore[operator]
        if seen >= self.steps:
            trainer.should_stop = True

    def after_batch(self, trainer: Trainer, module: Any) -> None:
        """Called by the module once it has counted the batch. A sharded checkpoint is written from here on, and is
        waited for before the next one, and before training ends."""
        self.asked = self.any_rank(self.asked or stop.asked() or 0)
        self.saved = module.batches_seen % self.every == 0 or bool(self.asked)
        if self.saved:
            file = self.run / checkpoints.FOLDER / f"{module.batches_seen:08d}.ckpt"
            self.finish(trainer)
            if trainer.is_global_zero:
                remove_leftovers(file.with_name("*.ckpt"))
                if file.is_dir():  # a damaged one, from which the run has gone back
                    remove(file)
            trainer.save_checkpoint(file)
            self.latest = module.batches_seen
            if sharded_saves(trainer) is None:
                self.finish(trainer)

    def finish(self, trainer: Trainer) -> None:
        """Wait until the latest checkpoint is there, then remove what it takes the place of."""
        finish_saving(trainer)
        if self.latest and trainer.is_global_zero:
            self.prune(self.latest)

    def prune(self, batches: int) -> None:
        """Remove what `keep` does not cover; later ones, if any, are damaged, and overwritten in time."""
        files = {int(file.stem): file for file in checkpoints.saved(self.run)}
        regular = sorted(n for n in files if n <= batches and n % self.every == 0)
        between = [n for n in files if n < batches and n % self.every != 0]
        for n in regular[: -self.keep] + between:
            remove(files[n])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make Lightning's counters a function of the batches seen: as of the end of an epoch, or of a batch in one."""
        restore_progress(checkpoint, checkpoint[checkpoints.CARD]["batches_seen"], self.every)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.saved and self.asked:  # not in `after_batch`, whose terms are logged after it
            self.finish(trainer)
            raise stop.StoppedError(self.asked)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """All is saved. Rank 0 leaves and requeues the job; the others, who may wait for each other, end with it."""
        if trainer.is_global_zero and (signum := self.asked or stop.asked()):
            self.finish(trainer)
            raise stop.StoppedError(signum)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if signum := self.asked:
            self.finish(trainer)
            raise stop.StoppedError(signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer)
