"""One training run: a folder that the same command continues."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn

from ldm.runtime import stop
from ldm.runtime.loggers import Artifact, close, link
from ldm.training.best import KeepBest
from ldm.training.console import Console
from ldm.training.curves import Curves, validated
from ldm.training.ema import EMA
from ldm.training.gradients import DivergenceError
from ldm.training.lightning_internals import finish_saving, ignore_known_warnings, plain_interrupts
from ldm.training.power_averages import PowerAverages
from ldm.training.progress import ProgressModule
from ldm.training.resume import Rollbacks, resume_point, roll_back
from ldm.training.saves import Saves
from ldm.training.speed import Speed
from ldm.training.trainer import make_trainer, tune

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a run lies, how far it goes and what it saves on the way.

    Args:
        run       : its folder; what is in it already is gone on with
        steps     : batches in all
        every     : batches between two checkpoints, each with a validation; cut to `steps`
        keep      : regular checkpoints that stay
        keep_best : a figure of the validation, of whose checkpoints the best stays, too; None = no such
        ema_decay : of the weights' average; 0 = none, so that validation and samples use the raw weights
        trainer   : conf/trainer's options: Lightning's own, channels_last and compile
        power_ema : widths of averages that are kept beside, see `PowerAverages`; none is none
        global_batch: images of a batch over all ranks; None = as many as they are given
        free      : keys of the config that the same run may change when it goes on
    """

    run: Path
    steps: int
    every: int
    keep: int
    keep_best: str | None
    ema_decay: float
    trainer: dict[str, Any]
    global_batch: int | None = None
    free: frozenset[str] = frozenset()
    power_ema: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.steps % self.stretch:
            raise ValueError(
                f"steps={self.steps} must be a multiple of every={self.every}, the batches between two checkpoints"
            )

    @property
    def stretch(self) -> int:
        """Batches between two checkpoints, which Lightning calls an epoch: the data are one endless stream."""
        return min(self.every, self.steps)

    def is_done(self, batches_seen: int) -> bool:
        """Whether neither a batch nor the last validation is missing."""
        validates = self.trainer["limit_val_batches"] != 0
        return batches_seen >= self.steps and (not validates or validated(self.run, batches_seen))


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Whom a run reports to beside its own files, and the lineage that wandb is told.

    Args:
        loggers : beside the CSV log
        used    : what this run is made from
        made    : called once training has ended, for what this run has made
    """

    loggers: list[Logger]
    used: list[Artifact]
    made: Callable[[], Artifact]


def fit(
    module: ProgressModule,
    data: LightningDataModule,
    plan: Plan,
    *,
    networks: list[nn.Module],
    callbacks: list[Callback],
    tracking: Tracking,
    begin: Callable[[], None],
) -> None:
    """Train as planned: save, validate and draw after each stretch of batches.

    Args:
        networks  : those that trainer.channels_last and trainer.compile are for
        callbacks : of this stage: its scores and pictures
        begin     : called once all checks have passed, before the first batch

    Raises:
        ValueError: if the run folder's checkpoint is of another experiment, or the trainer's options are wrong.
        StoppedError: if a signal asked training to stop; all is saved, and requeued where that is possible.
    """
    options, compiled = tune(networks, plan.trainer)
    resume, seen = resume_point(plan.run, module.card, plan.free)
    if plan.is_done(seen):
        log.info("%s is already trained for %d batches; raise steps= to go on", plan.run, seen)
        return
    if resume is not None and (before := Rollbacks.of(plan.run)) is not None:
        module.rollbacks = before.rollbacks

    def trainer_from(checkpoint: Path | None) -> Trainer:
        return _trainer(module, plan, options, [*compiled, *callbacks], tracking.loggers, checkpoint)

    trainer = trainer_from(resume)
    if plan.global_batch not in (None, module.batch_size * trainer.world_size):
        raise ValueError(
            f"global_batch={plan.global_batch} was dealt to {plan.global_batch // module.batch_size} ranks, but there "
            f"are {trainer.world_size}: pass trainer.devices="
        )
    speaks = trainer.is_global_zero
    begin()
    if plan.every > plan.steps:
        log.info("every=%d is more than steps=%d: the run saves and validates once, at its end", plan.every, plan.steps)
    for logger in tracking.loggers:
        logger.log_hyperparams(module.card["config"])
    try:
        _train(module, data, plan.run, trainer, resume, trainer_from)
        if speaks and tracking.loggers:
            link(tracking.loggers, used=tracking.used, made=[tracking.made()])
    except stop.StoppedError as stopped:
        if speaks:
            close(tracking.loggers, failed=True)  # before SLURM ends this process
            stopped.outcome = f"saved after batch {module.batches_seen}; {stop.requeue(stopped.signum)}"
        raise
    finally:
        if speaks:
            close(tracking.loggers, failed=sys.exc_info()[0] is not None)


def _trainer(
    module: ProgressModule,
    plan: Plan,
    options: dict[str, Any],
    callbacks: list[Callback],
    loggers: list[Logger],
    resume: Path | None,
) -> Trainer:
    """Lightning's Trainer for this plan, with the callbacks of every run around those of the stage."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the console's first line says what matters of its banner
    saves = Saves(plan.run, plan.steps, plan.stretch, plan.keep)
    module.after_batch = saves.after_batch
    best = [] if plan.keep_best is None else [KeepBest(plan.keep_best)]
    powers = [PowerAverages(plan.power_ema)] if plan.power_ema else []
    console = Console(plan.run, plan.steps, plan.stretch, resume)
    return make_trainer(
        options,
        default_root_dir=plan.run,
        # one more for a run that lacks nothing but its last validation: `Saves` stops it after that
        max_epochs=plan.steps // plan.stretch + (resume is not None and int(resume.stem) >= plan.steps),
        limit_train_batches=plan.stretch,
        use_distributed_sampler=False,  # the order of the data deals the ranks their shares
        num_sanity_val_steps=0,
        logger=[CSVLogger(plan.run, name="csv"), *loggers],
        enable_checkpointing=False,
        enable_progress_bar=False,  # `Console` has its own
        callbacks=[EMA(plan.ema_decay), *powers, *callbacks, Curves(), Speed(), console, saves, *best],
    )


def _train(
    module: ProgressModule,
    data: LightningDataModule,
    run: Path,
    trainer: Trainer,
    resume: Path | None,
    trainer_from: Callable[[Path | None], Trainer],
) -> None:
    """Train to the end, from an older checkpoint when training has gone wrong."""
    while True:
        try:
            with stop.interrupts_noted(), warnings.catch_warnings(), plain_interrupts():
                ignore_known_warnings()
                trainer.fit(module, data, ckpt_path=resume, weights_only=True)
            return
        except DivergenceError as why:
            finish_saving(trainer)
            resume = roll_back(run, module, why)
            trainer = trainer_from(resume)
