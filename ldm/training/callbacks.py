"""EMA and curves."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from ldm.files import atomic_write


class EMA(WeightAveraging):
    """Exponential moving average of all parameters, with LDM's warm-up: decay = min(decay, (1 + n) / (10 + n)).

    Validation runs on the average, and a checkpoint's state_dict is the average.
    """

    def __init__(self, decay: float) -> None:
        def update(average: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
            n = int(num_averaged)
            # the average was copied before trainer.precision=64-true made the module wider
            current = [now.to(mean.dtype) for mean, now in zip(average, current, strict=True)]
            torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=update)  # buffers are copied, not averaged

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *batch)
        assert self._average_model is not None
        for name in pl_module.not_averaged:  # type: ignore[union-attr]
            current = pl_module.get_submodule(name)
            self._average_model.module.get_submodule(name).load_state_dict(current.state_dict())


class Curves(Callback):
    """After each validation, joins the CSV logs of all starts of this run into metrics.csv and draws each metric."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            for logger in trainer.loggers:
                logger.save()
            write_curves(folder)


def write_curves(folder: Path) -> None:
    """RUN/csv/version_*/metrics.csv -> RUN/metrics.csv and RUN/curves.png; a later start overrides an earlier one."""
    rows: dict[int, dict[str, str]] = defaultdict(dict)
    starts = sorted((folder / "csv").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    for start in starts:
        with open(start, newline="") as file:
            new = [row for row in csv.DictReader(file) if row["step"]]
        if new:  # what an interrupted start logged beyond the checkpoint that this one resumed from is void
            first = min(int(row["step"]) for row in new)
            rows = defaultdict(dict, {step: row for step, row in rows.items() if step < first})
        for row in new:
            rows[int(row["step"])] |= {key: value for key, value in row.items() if value and key != "epoch"}
    if not rows:
        return
    names = ["step", *sorted({key for row in rows.values() for key in row} - {"step"})]
    with atomic_write(folder / "metrics.csv") as binary:
        lines = [",".join(names)] + [",".join(rows[step].get(name, "") for name in names) for step in sorted(rows)]
        binary.write(("\n".join(lines) + "\n").encode())
    _draw(folder / "curves.png", rows, [n for n in names if "/" in n])


def _draw(path: Path, rows: dict[int, dict[str, str]], names: list[str]) -> None:
    from matplotlib.figure import Figure

    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stage, title = name.split("/", 1)
        together = stage.startswith("latent_") or stage.endswith("_by_time")  # one picture for all channels or times
        groups[stage if together else title].append(name)
    columns = min(4, len(groups))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(groups) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(groups) // columns), columns, squeeze=False).flatten()
    for axis in axes[len(groups) :]:
        axis.axis("off")
    for axis, (title, members) in zip(axes[: len(groups)], sorted(groups.items()), strict=True):
        for name in members:
            points = [(step + 1, float(row[name])) for step, row in sorted(rows.items()) if name in row]
            axis.plot(
                *zip(*points, strict=True),
                label=name.split("/")[title == name.split("/")[0]],
                marker="." if len(points) < 20 else None,
            )
        axis.set_title(title)
        axis.set_xlabel("batches")
        if len(members) <= 16:
            many = len(members) > 4
            axis.legend(fontsize="xx-small" if many else None, ncols=1 + many, framealpha=0.5)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=80)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
