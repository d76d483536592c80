"""The best checkpoint by a figure of the validation, kept beside the regular ones."""

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer

from ldm.checkpoint import FOLDER
from ldm.runtime.files import TEMPORARY, remove_leftovers
from ldm.runtime.ranges import Natural
from ldm.runtime.schema import Finite, JsonFile
from ldm.training.lightning_internals import finish_saving

log = logging.getLogger(__name__)

BEST, NOTE = "best.ckpt", "best.json"
HIGHER = ("psnr", "ssim", "accuracy")  # the figures that are better where they are higher


class BestNote(JsonFile):
    """best.json: what best.ckpt beside it is the best of."""

    fix: ClassVar[str] = "remove it and best.ckpt: the best from here on is kept"

    metric: str
    value: Finite
    batches: Natural


class KeepBest(Callback):
    """Keeps checkpoints/best.ckpt: of the checkpoints that were validated, the one whose figure is best.

    Args:
        metric: a validation's figure, as val/fd; higher is better of PSNR, SSIM and accuracies
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.sign = -1.0 if metric.endswith(HIGHER) else 1.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures: dict[str, Any] = trainer.callback_metrics
        if self.metric not in figures:
            there = ", ".join(sorted(name for name in figures if name.startswith("val")))
            raise ValueError(f"keep_best={self.metric} is measured by no validation of this run: there are {there}")
        if trainer.is_global_zero:
            finish_saving(trainer)
            self.offer(Path(trainer.default_root_dir), float(torch.as_tensor(figures[self.metric])),
                       int(pl_module.batches_seen))  # type: ignore[arg-type] # fmt: skip

    def offer(self, run: Path, value: float, batches: int) -> None:
        """Keep the checkpoint after so many batches, if its figure is better than the best so far."""
        folder = run / FOLDER
        file, best = folder / f"{batches:08d}.ckpt", folder / BEST
        aside, before_it = (folder / f".{BEST}.{what}{TEMPORARY}" for what in ("next", "before"))
        if before_it.exists() and not best.exists():  # killed between the two renames below
            before_it.rename(best)
        before = BestNote.read(folder / NOTE) if (folder / NOTE).exists() and best.exists() else None
        beaten = before is not None and before.metric == self.metric and self.sign * before.value <= self.sign * value
        if beaten or not math.isfinite(value) or not file.exists():
            return
        remove_leftovers(best)
        if file.is_dir():
            shutil.copytree(file, aside, copy_function=_linked)
        else:
            _linked(file, aside)
        if best.is_dir() or (best.exists() and aside.is_dir()):
            best.rename(before_it)
        aside.replace(best)
        remove_leftovers(best)
        BestNote(metric=self.metric, value=value, batches=batches).write(folder / NOTE)
        log.info("%s: %s %.4g after batch %d is the best so far: %s", run, self.metric, value, batches, best)


def _linked(file: str | Path, to: str | Path) -> None:
    """The same file under another name, which stays when the first is removed."""
    try:
        os.link(file, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, to)
