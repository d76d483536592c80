"""One training run: a folder that the same command continues."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import nn

from ldm.runtime import stop
from ldm.runtime.files import read_json
from ldm.runtime.loggers import Artifact, close, link
from ldm.runtime.ranks import launch
from ldm.training.console import Console
from ldm.training.curves import Curves, validated
from ldm.training.ema import EMA
from ldm.training.gradients import DivergenceError
from ldm.training.lightning_internals import (
    FullyShardedStrategy,
    MisconfigurationException,
    ignore_known_warnings,
    leave_signals_alone,
    plain_interrupts,
)
from ldm.training.progress import ProgressModule
from ldm.training.resume import ROLLBACKS, resume_point, roll_back
from ldm.training.saves import AtomicCheckpointIO, Saves
from ldm.training.speed import MODES, Compiled, Speed

log = logging.getLogger(__name__)


def fit(
    module: ProgressModule,
    data: LightningDataModule,
    *,
    run: Path,
    steps: int,
    every: int,
    keep: int,
    ema_decay: float,
    callbacks: list[Callback],
    loggers: list[Logger],
    trainer: dict[str, Any],
    networks: list[nn.Module],
    begin: Callable[[], None],
    used: list[Artifact],
    made: Callable[[], Artifact],
) -> None:
    """Train for `steps` batches in all; save, validate and draw after each `every` of them; keep `keep` saves.

    What Lightning calls an epoch is here the stretch between two saves: the data are one endless stream.
    `begin` is called once all checks have passed, before the first batch. `used` and `made` are for wandb's lineage;
    `networks` are laid out and compiled as `trainer` says.

    Raises:
        ValueError: if the run folder's checkpoint is of another experiment, or the trainer's options wrong.
        StoppedError: if a signal asked training to stop; all is saved, and requeued where that is possible.
    """
    every = min(every, steps)
    if steps % every:
        raise ValueError(f"steps={steps} must be a multiple of every={every}, the batches between two checkpoints")
    trainer, compiled = tuned(networks, trainer)
    resume, seen = resume_point(run, module.card)
    if seen >= steps and (trainer["limit_val_batches"] == 0 or validated(run, seen)):
        log.info("%s is already trained for %d batches; raise steps= to go on", run, seen)
        return
    if resume is not None and (run / ROLLBACKS).exists():
        module.rollbacks = read_json(run / ROLLBACKS)["rollbacks"]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what matters of its banner is in the line that follows

    def make_fitter() -> Trainer:
        saves = Saves(run, steps, every, keep)
        module.after_batch = saves.after_batch
        fitter = _make_trainer(
            trainer,
            default_root_dir=run,
            # one more than there are, for a run that lacks but its last validation: `Saves` stops it after that
            max_epochs=steps // every + (seen >= steps),
            limit_train_batches=every,
            use_distributed_sampler=False,  # the order deals the ranks their shares
            num_sanity_val_steps=0,
            logger=[CSVLogger(run, name="csv"), *loggers],
            enable_checkpointing=False,
            callbacks=[EMA(ema_decay), *compiled, *callbacks, Curves(), Speed(), Console(run, steps, resume), saves],
        )
        leave_signals_alone(fitter)
        return fitter

    fitter = make_fitter()
    begin()
    for logger in loggers:
        logger.log_hyperparams(module.card["config"])
    try:
        with warnings.catch_warnings():
            ignore_known_warnings()
            while True:
                try:
                    with plain_interrupts():
                        fitter.fit(module, data, ckpt_path=resume, weights_only=True)
                    if fitter.is_global_zero:
                        link(loggers, used=used, made=[made()] if loggers else [])
                    return
                except DivergenceError as why:
                    resume = roll_back(run, module, why)
                    fitter = make_fitter()
    except stop.StoppedError as stopped:
        if fitter.is_global_zero:
            close(loggers, failed=True)  # before SLURM ends this process
            stopped.outcome = f"saved after batch {module.batches_seen}; {stop.requeue(stopped.signum)}"
        raise
    finally:
        if fitter.is_global_zero:
            close(loggers, failed=sys.exc_info()[0] is not None)


def tuned(networks: list[nn.Module], chosen: dict[str, Any]) -> tuple[dict[str, Any], list[Callback]]:
    """What conf/trainer says of how networks run: their weights are laid out here, and compiled by a callback; the rest
    are Lightning's own options."""
    options = dict(chosen)
    channels_last, compiled = options.pop("channels_last"), options.pop("compile") or False
    if not isinstance(compiled, bool) and compiled not in MODES:
        raise ValueError(f"trainer.compile={compiled} must be true, false or a mode: {', '.join(MODES)}")
    if chosen["strategy"] == "fsdp" and (channels_last or compiled):
        raise ValueError(
            "trainer.strategy=fsdp shards plain weights: pass trainer.channels_last=false trainer.compile=false"
        )
    for net in networks:
        net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return options, [Compiled(networks, compiled)] if compiled else []


def _make_trainer(chosen: dict[str, Any], **ours: Any) -> Trainer:
    if chosen.keys() & ours.keys():
        raise ValueError(f"trainer.{next(iter(chosen.keys() & ours.keys()))} can't be chosen: steps and every set it")
    start = launch()
    if start.world > 1:  # each number once: from what started the ranks
        ours |= {"devices": start.world // start.nodes, "num_nodes": start.nodes}
        wrong = [key for key in ("devices", "num_nodes") if chosen[key] not in ("auto", ours[key])]
        if wrong:
            raise ValueError(
                f"trainer.{wrong[0]}={chosen[wrong[0]]}, but {start.by} started {ours[wrong[0]]}: "
                f"start as many, or pass trainer.{wrong[0]}=auto"
            )
    elif chosen["num_nodes"] not in ("auto", 1):  # Lightning would wait for the others
        raise ValueError(
            f"trainer.num_nodes={chosen['num_nodes']}: start the command on each of them, by srun or torchrun"
        )
    else:
        ours["num_nodes"] = 1
    if chosen["strategy"] == "fsdp":
        ours["strategy"] = FullyShardedStrategy()
    # named, since Lightning takes any process within a SLURM job for one of srun's
    environment = {"srun": SLURMEnvironment, "torchrun": TorchElasticEnvironment, "": LightningEnvironment}[start.by]()
    try:
        with warnings.catch_warnings():
            ignore_known_warnings()
            return Trainer(**chosen | ours, plugins=[AtomicCheckpointIO(), environment], enable_model_summary=False)
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer: {error}") from None
