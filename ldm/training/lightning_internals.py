"""All that this project does with Lightning beyond Lightning's documented interface, one small function each.

Each function names what it touches and says why the documented interface is not enough. Each has a test in
tests/training/test_lightning_internals.py that fails when Lightning changes what it touches; pyproject.toml allows no
Lightning but those that the tests have seen. No other file of ldm touches a private name of Lightning's.
"""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.throughput import get_available_flops as get_available_flops
from lightning.pytorch.core.optimizer import LightningOptimizer as LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException as MisconfigurationException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from ldm.sharded_checkpoint import is_sharded_checkpoint, read_shards
from ldm.training.sharded_saves import ShardedSaves


def restore_progress(checkpoint: dict[str, Any], seen: int, every: int) -> None:
    """Rewrite, in a checkpoint that is being loaded, where Lightning's loops go on: after `seen` batches, in epochs of
    `every` batches each.

    Lightning saves its own counters, which count epochs of the length that they had then. Here a run's length and the
    batches between two saves may change when it goes on, so the counters are made a function of the batches seen.
    To be called from a callback's `on_load_checkpoint`: Lightning restores its loops after that.

    Touches: checkpoint["loops"]["fit_loop"], the state of `_FitLoop` and `_TrainingEpochLoop`.
    """
    epochs, within = divmod(seen, every)
    fit = checkpoint["loops"]["fit_loop"]
    batches = fit["epoch_loop.batch_progress"]
    if within == 0:  # as Lightning saves at the end of an epoch: all batches are done, the epoch is not yet counted
        _set(fit["epoch_progress"], 0, ready=epochs, started=epochs, processed=epochs, completed=epochs - 1)
        _set(batches, (epochs - 1) * every, ready=every, started=every, processed=every, completed=every)
    else:  # as Lightning saves in `on_train_batch_end`: the last batch is processed, but not yet completed
        _set(fit["epoch_progress"], 0, ready=epochs + 1, started=epochs + 1, processed=epochs, completed=epochs)
        _set(batches, epochs * every, ready=within, started=within, processed=within, completed=within - 1)
    batches["is_last_batch"] = within == 0
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = seen - (within != 0)


def _set(progress: dict[str, Any], before: int, **current: int) -> None:
    progress["current"] = current
    progress["total"] = {key: before + count for key, count in current.items()}


def validate_now(trainer: Trainer) -> None:
    """Run the validation of `Trainer.fit` outside of its turn, and go back to training.

    A run that was stopped between a save and the validation after it makes up for that validation when it goes on.
    `Trainer.validate` cannot do so: it sets up the run anew, and may not be called within `fit`.

    Touches: the validation loop within the training loop, its `restarting`, and the trainer's stage.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else the loop takes itself for one that was restored when it had ended
    trainer.validating = True
    loop.run()
    trainer.training = True


def batches_stepped(trainer: Trainer) -> int:
    """Batches that were followed by an optimiser step, the one that is ending left out. Lightning writes a row of the
    log where this, plus one, is a multiple of `log_every_n_steps`, and `Trainer.global_step`, which is documented,
    counts two a batch where there are two optimisers.

    Touches: `_TrainingEpochLoop._batches_that_stepped`.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from handling SIGTERM and SIGUSR1: `ldm.runtime.stop` owns them.

    Lightning would save under a name of its own and requeue the job by itself; it has no option against it.

    Touches: `Trainer._signal_connector`.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Let a Ctrl-C within `Trainer.fit` come out as the KeyboardInterrupt that it was.

    Lightning turns it into SystemExit(1) and ignores SIGINT from then on; in the middle of a save, torch's zip writer
    turns it into a RuntimeError about the file.

    Touches: what `Trainer.fit` does with a KeyboardInterrupt.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def loss_scaler(trainer: Trainer) -> "torch.amp.GradScaler | None":
    """What scales the loss under trainer.precision=16-mixed, so that gradients can be measured unscaled; else None.

    Touches: `MixedPrecision.scaler`, which Lightning does not document.
    """
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def unscales_by_itself(optimizer: Optimizer) -> bool:
    """Whether an optimiser divides its gradients by fp16's scale in its own step, as torch's fused ones do: Lightning
    has not unscaled them when it calls `on_before_optimizer_step`.

    Touches: `_step_supports_amp_scaling` of torch's optimisers, by which Lightning decides.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


class FullyShardedStrategy(ModelParallelStrategy):
    """trainer.strategy=fsdp: shards over all ranks, and saves full checkpoints, which rank 0 writes.

    Touches: `ModelParallelStrategy._data_parallel_size`, since Lightning's "auto" is one group a node, and how many
    ranks there are is not known when the strategy is made.

    Args:
        shard_within: ranks that share a copy of the weights, which every so many have; None: all share one
        half:         the type in which weights are gathered; None: as they are
        saves:        saves sharded checkpoints; None: whole ones are saved
    """

    def __init__(
        self, shard_within: int | None = None, half: torch.dtype | None = None, saves: ShardedSaves | None = None
    ) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.shard_within, self.half, self.saves = shard_within, half, saves

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @cached_property
    def mesh(self) -> DeviceMesh:
        """Over which weights are sharded: of all ranks, or [copies, ranks of each]; all ranks ask for it together."""
        world, within = self.world_size, self.shard_within or self.world_size
        if within >= world:
            return self.device_mesh["data_parallel"]
        return init_device_mesh(self.root_device.type, (world // within, within), mesh_dim_names=("replicate", "shard"))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self.saves is None:
            return super().lightning_module_state_dict()
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return super().optimizer_state(optimizer) if self.saves is None else optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.saves is None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        else:
            self.saves.start(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load with the state_dict, from which the average is read; Lightning loads it into the model and drops it."""
        if is_sharded_checkpoint(Path(checkpoint_path)):
            checkpoint = read_shards(Path(checkpoint_path), self.mesh)
            assert self.model is not None
            self.model.load_state_dict(checkpoint["state_dict"])
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                optimizer.load_state_dict(state)
            return checkpoint
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        full = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        return checkpoint | {"state_dict": full["state_dict"]}


def sharded_saves(trainer: Trainer) -> ShardedSaves | None:
    """What saves sharded checkpoints, under trainer.checkpoints=sharded; else None."""
    strategy = trainer.strategy
    return strategy.saves if isinstance(strategy, FullyShardedStrategy) else None


def finish_saving(trainer: Trainer) -> None:
    """Wait for a checkpoint that is being written."""
    if (saves := sharded_saves(trainer)) is not None:
        saves.finish()


KNOWN_WARNINGS = (
    "number of training batches",  # smaller than the logging interval, in a short run
    "does not have many workers",  # num_workers is the user's choice; 0 is best for small data
    "Trying to infer the `batch_size`",
    "`srun` command is available",  # `ldm.runtime.ranks.launch` has looked whether it is needed
    "when logging on epoch level in distributed setting",  # torchmetrics has reduced over all ranks already
)


def ignore_known_warnings() -> None:
    """Ignore, from here on, Lightning's advice that does not apply here, each by its text: it has no other name."""
    for text in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}")
    # torch's, of how Lightning uses its trees
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
