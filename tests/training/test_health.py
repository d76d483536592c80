"""A discriminator that goes wrong: found, said, and rolled back."""

import json
import re
from pathlib import Path

import pytest
import torch
from support.runs import checkpoint, rows
from support.tiny import CPU, TINY_AUTOENCODER

from ldm.training.gradients import DivergenceError, StepGuard
from ldm.training.health import Health


@pytest.mark.slow
def test_a_discriminator_a_hundred_times_too_fast_is_found_and_rolled_back(ldm):
    options = [
        *CPU,
        "autoencoder.channels=8",
        "discriminator.channels=16",
        "steps=140",
        "every=20",
        "keep=20",
        "batch_size=8",
        "trainer.limit_val_batches=1",
        "loss.disc_start=40",
        "loss.perceptual_weight=0",
        "disc_schedule.decay=constant",
        "health={window:10,ruin:1.5,logits:100,chance:20,rollbacks:3,disc_lr_factor:0.1}",
    ]
    ldm("train-autoencoder", *options, "run=healthy", "disc_optimizer.lr=2e-3")
    ldm("train-autoencoder", *options, "run=fault", "disc_optimizer.lr=0.2", "health.rollbacks=0")
    ldm("train-autoencoder", *options, "run=rolled", "disc_optimizer.lr=0.2")
    card = {run: checkpoint(f"runs/{run}", "autoencoder")["ldm"] for run in ("healthy", "fault", "rolled")}
    assert [card[run]["rollbacks"] for run in ("healthy", "fault")] == [0, 0]
    assert "collapse" not in Path("runs/healthy/log.txt").read_text()
    chance = r"collapse: after 20 batches the discriminator judges (4[89]|5[0-2])% of patches rightly, no better"
    assert re.search(chance, Path("runs/fault/log.txt").read_text())
    assert 1 <= card["rolled"]["rollbacks"] <= 3
    assert card["rolled"]["batches_seen"] == 140
    assert "went wrong at batch" in Path("runs/rolled/log.txt").read_text()

    def ends(run, key):
        return sum(float(row[key]) for row in rows(f"runs/{run}")[-20:]) / 20

    print({run: (ends(run, "train/disc_accuracy"), ends(run, "train/l1")) for run in card})
    assert ends("fault", "train/disc_accuracy") < 0.55
    assert ends("rolled", "train/disc_accuracy") > 0.7
    assert ends("rolled", "train/l1") < 1.25 * ends("healthy", "train/l1")


@pytest.mark.slow
def test_a_collapse_without_a_checkpoint_from_before_ends_the_run_in_one_line(ldm):
    options = [*TINY_AUTOENCODER, *CPU, "steps=20", "every=20", "loss.disc_start=0"]
    health = "health={window:5,ruin:1.5,logits:1e-9,chance:9,rollbacks:1,disc_lr_factor:0.1}"
    with pytest.raises(SystemExit, match=r"diverged at batch 0: collapse: .* lower every=, health\.window="):
        ldm("train-autoencoder", *options, health)


def health(**options):
    defaults = {"window": 5, "ruin": 1.5, "logits": 10.0, "chance": 20, "rollbacks": 0, "disc_lr_factor": 0.1}
    return Health(**(defaults | options))


def batch(l1=0.1, real=1.0, fake=-1.0, accuracy=0.9):
    values = {"l1": l1, "logits_real": real, "logits_fake": fake, "disc_accuracy": accuracy}
    return {name: torch.tensor(value) for name, value in values.items()}


def test_a_healthy_game_is_left_alone(caplog):
    it = health(rollbacks=1)
    for _ in range(20):
        assert it.watch({"l1": torch.tensor(0.1)}, 0) == {}  # before the discriminator
    for _ in range(50):
        terms = it.watch(batch() | {"disc_weight_clamped": torch.tensor(1.0)}, 0)
    assert terms["disc_weight_clamped_share"] > 0.99
    assert not caplog.records


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"l1": 0.3}, "x its best"), ({"real": 500.0}, "run away"), ({"fake": -500.0}, "run away")],
)
def test_collapses_are_said_once_and_raise_when_a_rollback_is_left(bad, said, caplog):
    for rollbacks in (0, 1):
        it = health(rollbacks=rollbacks)
        for _ in range(20):
            it.watch(batch(), 0)
        if rollbacks:
            with pytest.raises(DivergenceError, match="collapse"):
                for _ in range(60):
                    it.watch(batch(**bad), 0)
        else:
            for _ in range(60):
                it.watch(batch(**bad), 0)
            assert [said in record.message for record in caplog.records] == [True]


def test_one_bad_batch_is_no_collapse(caplog):
    """It is for the guards, which skip its steps."""
    it = health(rollbacks=1)
    for _ in range(20):
        it.watch(batch(), 0)
    before = it.means.clone()
    it.watch(batch(l1=float("nan"), fake=float("inf")), 0)
    assert torch.equal(it.means, before)
    assert not caplog.records


def test_the_clamped_share_is_of_batches_in_which_the_weight_was_taken():
    it = health()
    for _ in range(50):
        it.watch(batch(), 0)  # the discriminator warms up
    assert it.watch(batch() | {"disc_weight_clamped": torch.tensor(1.0)}, 0)["disc_weight_clamped_share"] >= 0.2


@pytest.mark.parametrize("player", ["guard", pytest.param("disc_guard", marks=pytest.mark.slow)])
def test_a_guards_stop_is_rolled_back_and_remembered(ldm, player, monkeypatch):
    """Every step after the 24th is a spike: two rollbacks, each from further back, then one line."""
    options = [
        *TINY_AUTOENCODER,
        *CPU,
        "steps=30",
        "every=6",
        "keep=9",
        "loss.disc_start=0",
    ]
    options += ["health={window:5,ruin:9,logits:1e9,chance:40,rollbacks:2,disc_lr_factor:0.1}"]
    allows = StepGuard.allows

    def failing(self, parameters, scale):
        if int(self.counts[0]) >= 24:
            self.spike = 1e-6
        return allows(self, parameters, scale)

    monkeypatch.setattr(StepGuard, "allows", failing)
    monkeypatch.setattr("ldm.training.gradients.SETTLE", 10)
    with pytest.raises(
        SystemExit, match=r"3 steps in a row were skipped.*after 2 rollbacks.*larger health\.rollbacks="
    ):
        ldm("train-autoencoder", *options, f"{player}={{clip:null,spike:100.0,patience:3}}")
    log = Path("runs/autoencoder/log.txt").read_text()
    assert "rollback 1, to 00000018.ckpt" in log
    assert "rollback 2, to 00000012.ckpt" in log
    assert json.loads(Path("runs/autoencoder/rollbacks.json").read_text())["rollbacks"] == 2
    monkeypatch.setattr(StepGuard, "allows", allows)
    ldm("train-autoencoder", *options)  # goes on, and remembers
    assert checkpoint("runs/autoencoder", "autoencoder")["ldm"]["rollbacks"] == 2
    last = rows("runs/autoencoder")[-1]
    assert float(last["train/disc_lr"]) <= 0.01 * 2e-4


def test_a_discriminator_at_chance_is_said(caplog):
    it = health(rollbacks=0)
    for _ in range(30):
        it.watch(batch(accuracy=0.5), 0)
    assert [record.message for record in caplog.records if "no better than chance" in record.message]
