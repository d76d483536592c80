"""An offline run that was stopped and went on, uploaded by `wandb sync` to a local server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.interruptions import hook
from support.processes import start
from support.runs import rows
from support.tiny import CPU, TINY_DIFFUSION

from ldm.runtime.wandb_parts import BLOCK, HEADER
from ldm.training.diffusion_module import DiffusionModule

WANDB = Path(sys.executable).with_name("wandb")
TRAIN = ["train-diffusion", *TINY_DIFFUSION, *CPU, "latents=runs/latents", "logger=wandb", "steps=12", "every=4"]


@pytest.fixture
def ours(monkeypatch, there):
    """The command, with wandb offline."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return there


def sync(*parts):
    """`wandb sync` of the parts of an offline run."""
    settings = {"WANDB_API_KEY": 40 * "a", "WANDB_SILENT": "false"}
    words = [WANDB, "sync", "--yes", "--include-synced", *parts]
    done = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def check(run, folder, batches=12, validates=True):
    """Each row of metrics.csv is there once, and their steps rise."""
    sent = [row for row in run.rows() if "train/loss" in row]
    told = [row for row in rows(folder) if row["train/loss"]]
    assert [row["batches"] for row in sent] == list(range(1, batches + 1))
    assert [row["train/loss"] for row in sent] == pytest.approx([float(row["train/loss"]) for row in told])
    steps = [row["_step"] for row in run.rows()]
    assert steps == sorted(set(steps))
    validated = [row["batches"] for row in run.rows() if "val/loss" in row]
    assert validated == (list(range(4, batches + 1, 4)) if validates else [])


def stopped_at(monkeypatch, ours, batch):
    with monkeypatch.context() as patch:
        signal_once = iter([True])
        hook(
            patch, DiffusionModule, "training_step", lambda module: module.batches_seen == batch - 1,
            lambda: next(signal_once, False) and os.kill(os.getpid(), signal.SIGTERM),
        )  # fmt: skip
        with pytest.raises(SystemExit):
            ours(*TRAIN, "run=flow")


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False], ids=["at once", "part by part"])
def test_a_run_that_was_stopped_twice_is_one_run(ours, wandb_server, monkeypatch, together):
    stopped_at(monkeypatch, ours, 3)
    stopped_at(monkeypatch, ours, 8)
    ours(*TRAIN, "run=flow")
    parts = sorted(Path("runs/flow/wandb").glob("offline-run-*"))
    assert len(parts) == 3
    for group in [parts] if together else [[part] for part in parts]:
        sync(*group)
    (run,) = wandb_server.values()
    check(run, "runs/flow")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "where", "options"),
    [
        (7, "training_step", []),  # before wandb has written anything
        (55, "training_step", []),
        (52, "validation_step", []),  # once it has saved
        (55, "training_step", ["trainer.limit_val_batches=0"]),
    ],
    ids=["nothing written", "in a record", "in a validation", "without validations"],
)
def test_a_part_that_was_killed_is_cut_and_filled(ours, wandb_server, batch, where, options):
    """wandb writes whole blocks: what it had not written comes from metrics.csv, what is repeated is there once."""
    steps = 12 if batch == 7 else 60
    train = [*TRAIN, "run=flow", f"steps={steps}", *options]
    environment = {"WANDB_SILENT": "true", "KILLED_IN": where, "KILLED_AFTER": str(batch)}
    process = start(".", train[0], tuple(train[1:]), environment, kill_after)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = Path("runs/flow/wandb").glob("offline-run-*/*.wandb")
    size = left.stat().st_size
    assert size == HEADER if batch == 7 else size % BLOCK == 0
    ours(*train)
    sync(*sorted(Path("runs/flow/wandb").glob("offline-run-*")))
    (run,) = wandb_server.values()
    check(run, "runs/flow", steps, validates=not options)


def kill_after():
    name, batches = os.environ["KILLED_IN"], int(os.environ["KILLED_AFTER"])
    step = getattr(DiffusionModule, name)

    def killed(self, *batch):
        if self.batches_seen == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *batch)

    setattr(DiffusionModule, name, killed)
