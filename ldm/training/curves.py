"""RUN/metrics.csv and RUN/curves.png: one table and one picture over all starts of a run."""

import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer

from ldm.runtime.files import atomic_write
from ldm.runtime.tables import number, read_rows
from ldm.training.plots import draw_curves


class Curves(Callback):
    """Joins the CSV logs of all starts into metrics.csv after each validation. Draws curves.png at the end, and before
    that at most once a minute, since drawing takes seconds."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.drawn = time.monotonic()
        self._write(trainer, draw=False)  # what a killed start had logged since its last validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, draw=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        draw = time.monotonic() - self.drawn > 60
        self.drawn = time.monotonic() if draw else self.drawn
        self._write(trainer, draw)

    def _write(self, trainer: Trainer, draw: bool) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            write_curves(Path(trainer.default_root_dir), draw)


def write_curves(folder: Path, draw: bool) -> None:
    """RUN/csv/version_*/metrics.csv -> RUN/metrics.csv, and, to draw, RUN/curves.png."""
    rows = sorted(_joined(folder).items())
    if not rows:
        return
    names = ["step", *sorted({key for _, row in rows for key in row} - {"step"})]
    with atomic_write(folder / "metrics.csv") as binary:
        lines = [",".join(names)] + [",".join(row.get(name, "") for name in names) for _, row in rows]
        binary.write(("\n".join(lines) + "\n").encode())
    if draw:
        draw_curves(folder / "curves.png", str(folder), {name: _series(rows, name) for name in names if "/" in name})


def _joined(folder: Path) -> dict[int, dict[str, str]]:
    """The rows of all starts by step. A start replaces what an earlier one logged after the checkpoint that it resumed
    from; a start that only did a validation replaces nothing."""
    rows: dict[int, dict[str, str]] = defaultdict(dict)
    first = 0
    starts = [path for path in (folder / "csv").glob("version_*/metrics.csv") if path.parent.name[8:].isdecimal()]
    for start in sorted(starts, key=lambda path: int(path.parent.name[8:])):
        new = read_rows(start)
        trained = [int(row["step"]) for row in new if row.get("train/lr")]
        if trained:
            first = min(trained)
            rows = defaultdict(dict, {step: row for step, row in rows.items() if step < first})
        for row in new:
            rows[int(row["step"])] |= {key: value for key, value in row.items() if value and key != "epoch"}
    # what an earlier start logged is kept here, too, should its own file be lost
    for row in read_rows(folder / "metrics.csv"):
        if int(row["step"]) < first and int(row["step"]) not in rows:
            rows[int(row["step"])] = {key: value for key, value in row.items() if value}
    return rows


def _series(rows: list[tuple[int, dict[str, str]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Batches and values, [N] each, of a metric that N rows hold."""
    points = [(step + 1, value) for step, row in rows if (value := number(row.get(name))) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points])


def last_value(folder: Path, name: str | None) -> float | None:
    """The last value of a metric in RUN/metrics.csv, which is what a run returns to a sweep; None without one."""
    values = [value for row in read_rows(folder / "metrics.csv") if (value := number(row.get(name or ""))) is not None]
    return values[-1] if values else None


def validated(run: Path, batches: int) -> bool:
    """Whether RUN/metrics.csv holds a validation after so many batches."""
    rows = [row for row in read_rows(run / "metrics.csv") if int(row["step"]) == batches - 1]
    return any(value for row in rows for key, value in row.items() if key.startswith("val/"))
