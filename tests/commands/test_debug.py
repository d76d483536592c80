"""conf/debug: one batch learned by heart, and a profile of a few."""

import json
from pathlib import Path

import pytest
import torch
from support.runs import rows
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION

from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.diffusion_module import DiffusionModule


@pytest.fixture
def seen(monkeypatch):
    """Every batch that either stage trains on or validates on: {name of the step: [batch]}."""
    batches: dict[str, list[torch.Tensor]] = {"training_step": [], "validation_step": []}

    def note(cls, name):
        step = getattr(cls, name)

        def noting(self, batch, batch_idx):
            batches[name].append(batch[0].clone())
            return step(self, batch, batch_idx)

        monkeypatch.setattr(cls, name, noting)

    for cls in (AutoencoderModule, DiffusionModule):
        for name in batches:
            note(cls, name)
    return batches


def mean(log, key):
    return sum(float(row[key]) for row in log) / len(log)


def assert_one_batch(seen, steps, validations):
    assert [len(batches) for batches in seen.values()] == [steps, validations]
    first = seen["training_step"][0]
    assert all(torch.equal(batch, first) for batches in seen.values() for batch in batches)


def test_stage_one_learns_a_batch_by_heart(ldm, seen):
    options = [
        *TINY_AUTOENCODER,
        *CPU,
        "debug=overfit",
        "optimizer.lr=1e-2",
        "batch_size=2",
    ]
    ldm(
        "train-autoencoder",
        *options,
        "loss.disc_weight=0",
        "regularizer=none",
        "steps=60",
        "every=30",
    )
    assert_one_batch(seen, 60, 2)
    log = rows("runs/overfit-train_autoencoder")
    assert mean(log[-5:], "train/l1") < 0.2 * mean(log[:2], "train/l1")
    assert float(log[-1]["val/l1"]) < 0.2 * mean(log[:2], "train/l1")  # the batch that it was trained on


def test_stage_two_has_one_batch_and_goes_on_with_it(ldm, pipeline, seen):
    """That it learns it by heart: tests/test_demo.py, whose latents are more than noise."""
    options = [*TINY_DIFFUSION, *CPU, "debug=overfit", f"latents={pipeline}/runs/latents", "every=3"]
    for steps in (3, 6):
        ldm("train-diffusion", *options, f"steps={steps}")
    assert_one_batch(seen, 6, 2)


TRAINED = {"train-autoencoder": TINY_AUTOENCODER, "train-diffusion": TINY_DIFFUSION}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_profile_is_a_table_and_a_trace(ldm, pipeline, name):
    kept = [option for option in TRAINED[name] if not option.startswith(("steps=", "every=", "trainer.limit_val"))]
    latents = [f"latents={pipeline}/runs/latents"] if name == "train-diffusion" else []
    ldm(name, *kept, *CPU, *latents, "debug=profile")
    folder = Path(f"runs/profile-{name.replace('-', '_')}")
    assert "aten::conv2d" in (folder / "fit-profile.txt").read_text()
    (trace,) = folder.glob("*.pt.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event.get("name", "").startswith("ProfilerStep") for event in events) >= 5
