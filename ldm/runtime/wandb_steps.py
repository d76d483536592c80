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
from ldm.runtime.tables import number, read_rows
from ldm.runtime.wandb_parts import is_empty, is_of_training, keep_rows_before, row_number


class WandbByBatches(WandbLogger):
    """Rows of training have the step 2 n after n batches; what a validation says, and draws, has 2 n + 1. So a batch
    that a killed run repeats has the same step again, and a validation that was cut short a step of its own."""

    goes_on = False  # whether the run has earlier parts, which are still to be joined

    def log_hyperparams(self, params: Any) -> None:
        """Begin wandb's run with its config. Parts of it that were killed before wandb had written anything go first:
        beside one, `wandb sync` uploads none."""
        import wandb

        if rank() == 0 and wandb.run is None and self.save_dir is not None:
            earlier = self._parts()
            self.goes_on = bool(earlier)
            for part in earlier:
                if is_empty(part):
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
        at = row_number(step, any(map(is_of_training, metrics)))
        if self.goes_on:
            self._join(at)
            self.goes_on = False
        self._log(metrics, step, at)

    def _parts(self) -> list[Path]:
        """The folders of this run's offline parts: other runs may have theirs beside."""
        return list(Path(self.save_dir or ".", "wandb").glob(f"offline-run-*-{self.version}"))

    def _log(self, metrics: Mapping[str, float], step: int, at: int) -> None:
        run: Any = self.experiment
        run.log({**metrics, "trainer/global_step": step}, step=at if at >= run.step else None)

    def _join(self, first: int) -> None:
        """Let this part go on where the earlier ones end: they lose the rows from `first` on, which training repeats,
        and what a killed process had not written before it comes from metrics.csv."""
        rows, own = read_rows(Path(self.save_dir or ".", "metrics.csv")), Path(self.experiment.dir).parent.name
        if not rows:
            return
        last = max((keep_rows_before(part, first) for part in self._parts() if part.name != own), default=0)
        for row in rows:
            figures = {name: value for name, text in row.items() if (value := number(text)) is not None}
            step, both = int(figures.pop("step")), {k: figures.pop(k) for k in ("batches", "images") if k in figures}
            for trains in (True, False):
                told = {name: value for name, value in figures.items() if is_of_training(name) == trains}
                if told and last < (at := row_number(step, trains)) < first:
                    self._log(told | both, step, at)
