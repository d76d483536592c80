"""latents=null: stage 2 from images that it encodes itself."""

from pathlib import Path

import pytest
import torch
from support.image_files import write_images
from support.runs import assert_close_weights, assert_same_training, checkpoint, rows
from support.tiny import CPU, TINY_DIFFUSION, fails

LIVE = ["latents=null", "autoencoder=runs/autoencoder", "data=digits"]
OPTIONS = [*TINY_DIFFUSION, *CPU, "schedule.decay=constant", "+optimizer.eps=1e-3"]


def test_without_augmentation_it_is_training_on_the_cache(there):
    """To the rounding of moments to half precision: the same images in the same order, the same statistics."""
    there("train-diffusion", *OPTIONS, "latents=runs/latents", "run=cached")
    there("train-diffusion", *OPTIONS, *LIVE, "run=live")
    assert_close_weights("runs/cached", "runs/live", "diffusion", rtol=1e-3, atol=1e-4)
    cached, live = rows("runs/cached"), rows("runs/live")
    assert [float(r["train/loss"]) for r in live if r["train/loss"]] == pytest.approx(
        [float(r["train/loss"]) for r in cached if r["train/loss"]], rel=1e-3
    )
    stats = [checkpoint(f"runs/{run}", "diffusion")["ldm"]["stats"] for run in ("cached", "live")]
    for key in ("mean", "std"):
        assert stats[1][key] == pytest.approx(stats[0][key], rel=1e-3)


def test_whitened_it_is_training_on_a_whitened_cache(there):
    there("cache-latents", "run=white", "autoencoder=runs/autoencoder", "data=digits", "device=cpu", "whiten=true")
    there("train-diffusion", *OPTIONS, "latents=runs/white", "run=cached")
    there("train-diffusion", *OPTIONS, *LIVE, "whiten=true", "run=live")
    cached, live = (checkpoint(f"runs/{run}", "diffusion")["ldm"]["stats"] for run in ("cached", "live"))
    assert torch.tensor(live["whitening"]).numpy() == pytest.approx(torch.tensor(cached["whitening"]).numpy(), rel=0.02)
    assert_close_weights("runs/cached", "runs/live", "diffusion", rtol=1e-3, atol=1e-4)


def test_it_goes_on_as_if_it_had_not_stopped_with_the_statistics_that_it_began_with(there, monkeypatch):
    there("train-diffusion", *OPTIONS, *LIVE, "run=whole")
    there("train-diffusion", *OPTIONS, *LIVE, "run=parts", "steps=2")
    monkeypatch.setattr("ldm.data.encoded_images.MEASURED", 8)  # what it would measure now
    there("train-diffusion", *OPTIONS, *LIVE, "run=parts")
    assert_same_training("runs/parts", "runs/whole", "diffusion")


def test_it_samples_scores_and_keeps_its_autoencoder(there):
    there("train-diffusion", *OPTIONS, *LIVE, "condition=infill", "features=pixels", "scored=4", "run=live")
    assert Path("runs/live/autoencoder.ckpt").exists()
    assert checkpoint("runs/live", "diffusion")["ldm"]["autoencoder_path"] == "autoencoder.ckpt"
    assert float(rows("runs/live")[-1]["val/fd"]) > 0
    there("sample", "model=runs/live", "num=2", "sampler.steps=1")
    there("report", "runs/live")


def test_crops_and_mirrors_are_training_s(there):
    write_images(Path("photos/a"), 6)
    write_images(Path("photos/b"), 6, seed=1)
    folder = ["data=folder", "data.root=photos", "data.resolution=32", "data.resize=40", "data.crop=random"]
    there("train-diffusion", *OPTIONS, *LIVE[:2], *folder, "objective=ot_flow", "run=crops")
    there("train-diffusion", *OPTIONS, *LIVE[:2], *folder, "objective=ot_flow", "data.crop=center", "run=centre")
    losses = [[r["train/loss"] for r in rows(f"runs/{run}")] for run in ("crops", "centre")]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latents=null"], "pass autoencoder=RUN, and data="),
        (["latents=null", "autoencoder=runs/autoencoder"], "pass autoencoder=RUN, and data="),
        (["latents=runs/latents", "data=digits"], "leave data= out, or pass latents=null"),
        (["latents=runs/latents", "whiten=true"], "else ldm cache-latents whiten=true"),
        ([*LIVE, "condition=upscale"], "condition= reads low of a cache"),
        ([*LIVE, "trainer.strategy=fsdp"], "pass latents=RUN"),
        ([*LIVE, "objective=reflow"], "ldm cache-pairs first"),
    ],
)
def test_what_does_not_fit_is_said(there, words, said):
    assert said in fails("train-diffusion", *OPTIONS, *words)
