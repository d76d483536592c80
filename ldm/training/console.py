"""What a run says on the terminal and in its log."""

import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import TextColumn
from rich.table import Column

from ldm.runtime.bars import duration, one_line_bar, shown
from ldm.training.curves import last_value
from ldm.training.progress import ProgressModule

log = logging.getLogger(__name__)

PAUSE = 0.5  # seconds between two looks at the figures: reading them waits for the GPU
ON_THE_BAR = {"train/loss": "loss", "val/loss": "val"}
FIGURES = (
    "train/loss",
    "val/loss",
    "val/psnr",
    "val/rfd",
    "val/fd",
    "val/class_accuracy",
)  # what a run is judged by, as far as it has them


class Console(Callback):
    """A line that says what runs where; a bar of one line over the batches of the whole run, with the losses, images/s
    and the time left; a line in the log after each validation, for whoever comes back later.

    run     the run folder
    steps   batches in all
    every   batches between two validations
    resume  the checkpoint that the run goes on from, if any
    """

    def __init__(self, run: Path, steps: int, every: int, resume: Path | None) -> None:
        self.run, self.steps, self.every, self.resume = run, steps, every, resume
        self.on_screen = ExitStack()
        self.looked, self.validation_started, self.validation_took = 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            log.info("; ".join(self._start(trainer, _progress(pl_module))))
        columns = [TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True))]
        self.bar = self.on_screen.enter_context(shown(one_line_bar(*columns, hidden=not trainer.is_global_zero)))
        seen = _progress(pl_module).batches_seen
        self.task = self.bar.add_task("training", total=self.steps, completed=seen, figures="", left=None)

    def _start(self, trainer: Trainer, module: ProgressModule) -> list[str]:
        rates = ", ".join(f"{name} {rate:g}" for name, rate in zip(module.rate_factors(), module.rates, strict=True))
        per_image = f" (lr_per_image {module.lr_per_image:g})" if module.lr_per_image is not None else ""
        flops = module.flops * module.global_batch / 1e9
        return [
            f"{self.run} resumes from {self.resume.name}" if self.resume else f"{self.run} starts",
            f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}",
            f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters",
            f"global batch {module.global_batch} = {module.batch_size} images x {trainer.world_size} ranks",
            f"{flops:.3g} GFLOP a batch",
            f"{rates}{per_image}{f' after {module.rollbacks} rollbacks' if module.rollbacks else ''}",
            f"batches {module.batches_seen} to {self.steps}",
        ]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        seen = _progress(pl_module).batches_seen + 1  # the module counts the batch after its callbacks
        self.bar.update(self.task, completed=seen)
        if time.monotonic() - self.looked > PAUSE:
            self._show(trainer, seen)

    def _show(self, trainer: Trainer, seen: int) -> None:
        """Put the figures as they are now on the bar."""
        if trainer.is_global_zero:
            self.looked, speed = time.monotonic(), _images_per_second(trainer)
            figures = [f"{ON_THE_BAR[name]} {value:.3g}" for name, value in _values(trainer, ON_THE_BAR)]
            figures += [f"{_rounded(speed)} img/s"] if speed else []
            left = self._left(trainer, _progress(trainer.lightning_module))
            self.bar.update(self.task, completed=seen, figures=" ".join(figures), left=left)

    def _left(self, trainer: Trainer, module: ProgressModule) -> float | None:
        """Seconds to the end of the run, its validations included; None while the speed is unknown."""
        speed = _images_per_second(trainer)
        if not speed:
            return None
        validations = self.steps // self.every - module.batches_seen // self.every
        return (self.steps - module.batches_seen) * module.global_batch / speed + validations * self.validation_took

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_started = time.monotonic()
        self.bar.update(self.task, description="validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_took = time.monotonic() - self.validation_started
        self.bar.update(self.task, description="training")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            module, speed = _progress(pl_module), _images_per_second(trainer)
            figures = [f"{name} {value:.4g}" for name, value in _values(trainer, FIGURES)]
            left = self._left(trainer, module)
            pace = [] if left is None else [f"{_rounded(speed)} images/s", f"{duration(left)} left"]
            log.info("%s: batch %d of %d: %s", self.run, module.batches_seen, self.steps, ", ".join(figures + pace))
            self._show(trainer, module.batches_seen)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_screen.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_screen.close()


def final_figures(run: Path) -> str:
    """The last figures in RUN/metrics.csv, for a person: "val/loss 0.084, val/psnr 25.6"."""
    values = {name: last_value(run, name) for name in FIGURES}
    judged = {name: value for name, value in values.items() if value is not None and name.startswith("val/")}
    return ", ".join(f"{name} {value:.4g}" for name, value in (judged or values).items() if value is not None)


def _values(trainer: Trainer, names: Iterable[str]) -> list[tuple[str, float]]:
    """Those of these metrics that were logged."""
    logged = trainer.callback_metrics
    return [(name, float(logged[name])) for name in names if name in logged]


def _images_per_second(trainer: Trainer) -> float:
    """Over all ranks, as it was last logged; 0 before that."""
    return float(trainer.logged_metrics.get("speed/images_per_s", 0))


def _rounded(speed: float) -> str:
    """Whole from 10 on: 2.3, 434, 12345."""
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"


def _progress(module: LightningModule) -> ProgressModule:
    assert isinstance(module, ProgressModule)
    return module
