"""Stage 2 when its gradients are not finite: it skips, counts, stops or goes back, and never saves what went wrong."""

from pathlib import Path

import pytest
import torch
from support.runs import checkpoint, rows
from support.tiny import CPU, TINY_DIFFUSION, fails, inside

from ldm.training.diffusion_module import DiffusionModule

OPTIONS = [*TINY_DIFFUSION, *CPU, "trainer.limit_val_batches=0"]


def bad_batches(monkeypatch, which):
    """The loss of these batches, counted over the whole process, is NaN."""
    right, asked = DiffusionModule._loss, []

    def loss(self, stage, *arguments):
        value = right(self, stage, *arguments)
        asked.append(self.batches_seen)
        return value * float("nan") if stage == "train" and which(len(asked) - 1) else value

    monkeypatch.setattr(DiffusionModule, "_loss", loss)
    return asked


def finite(run):
    return all(value.isfinite().all() for value in checkpoint(run, "diffusion")["current_model_state"].values())


def test_a_bad_batch_is_skipped_and_counted(ldm, pipeline, monkeypatch):
    ldm = inside(pipeline, ldm)
    bad_batches(monkeypatch, lambda i: i == 1)
    ldm("train-diffusion", "run=skips", *OPTIONS)
    assert [row["train/skipped"] for row in rows("runs/skips")] == ["0.0", "1.0", "1.0", "1.0"]
    assert finite("runs/skips")


def test_a_skipped_step_changes_nothing(ldm, pipeline, monkeypatch):
    """Nor do Adam's running means move the weights on."""
    ldm = inside(pipeline, ldm)
    bad_batches(monkeypatch, lambda i: i >= 2)
    ldm("train-diffusion", "run=still", *OPTIONS, "keep=2", "ema_decay=0")
    after_2, after_4 = (
        torch.load(f"runs/still/checkpoints/0000000{n}.ckpt", weights_only=True)["state_dict"] for n in (2, 4)
    )
    assert all(torch.equal(after_2[name], after_4[name]) for name in after_2 if name.startswith("net."))


def test_too_many_in_a_row_stop_it_with_the_way_on(ldm, pipeline, monkeypatch):
    inside(pipeline, ldm)
    bad_batches(monkeypatch, lambda i: i >= 2)
    line = fails("train-diffusion", "run=stops", *OPTIONS, "steps=8", "guard.patience=3")
    assert "training diverged at batch 4: 3 steps in a row were skipped" in line
    assert "a larger rollbacks= or a smaller guard.clip=, or start run=NEW with lower learning rates" in line
    assert finite("runs/stops")


def test_it_goes_back_and_on_at_a_lower_rate(ldm, pipeline, monkeypatch):
    ldm = inside(pipeline, ldm)
    options = ["steps=8", "guard.patience=2", "rollbacks=1", "rollback_lr=0.5", "keep=9", "schedule.decay=constant"]
    bad_batches(monkeypatch, lambda i: 4 <= i < 6)
    ldm("train-diffusion", "run=back", *OPTIONS, *options, "schedule.warmup=0")
    rates = {int(row["batches"].partition(".")[0]): float(row["train/lr"]) for row in rows("runs/back")}
    assert rates[1] == pytest.approx(1e-3)
    assert rates[8] == pytest.approx(5e-4)
    assert Path("runs/back/rollbacks.json").exists()
    assert finite("runs/back")


@pytest.mark.parametrize("rate", ["1e8", "1e30"])
def test_a_rate_far_too_high_ends_in_one_line_and_no_picture(rate, ldm, pipeline):
    inside(pipeline, ldm)
    line = fails("train-diffusion", f"run=hot{rate}", *OPTIONS, "steps=40", "every=40", f"optimizer.lr={rate}")
    assert "training diverged at batch" in line
    assert not list(Path(f"runs/hot{rate}").glob("samples/*.png"))
