"""wandb's logger of Lightning, with steps that are a function of progress.

Left alone, every part of an offline run that was stopped and went on counts its rows from 0. `wandb sync` uploads the
parts as one run, in which the rows of a later part then stand on the steps of an earlier one.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from ldm.runtime.ranks import rank

HEADER = 7  # bytes with which each of wandb's files begins


class WandbByBatches(WandbLogger):
    """Rows of training have the step 2 n after n batches; what a validation says, and draws, has 2 n + 1. So a batch
    that a killed run repeats has the same step again, and a validation that was cut short a step of its own."""

    def log_hyperparams(self, params: Any) -> None:
        """Begin wandb's run with its config. Parts of it that were killed before wandb had written anything go first:
        beside one, `wandb sync` uploads none."""
        import wandb

        if rank() == 0 and wandb.run is None and self.save_dir is not None:
            for part in Path(self.save_dir, "wandb").glob("offline-run-*"):
                if all(file.stat().st_size <= HEADER for file in part.glob("*.wandb")):
                    shutil.rmtree(part, ignore_errors=True)
        super().log_hyperparams(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row; step: batches seen before it. After a rollback rows follow those of before by wandb's own count,
        since it refuses steps that fall."""
        if rank() > 0:
            return
        if step is None:
            super().log_metrics(metrics)
            return
        run: Any = self.experiment
        of_training = any(name.startswith("train/") for name in metrics)
        at = 2 * (step + 1) + (not of_training)
        run.log({**metrics, "trainer/global_step": step}, step=at if at >= run.step else None)
