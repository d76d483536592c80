"""Stopping and continuing equals never having stopped, bit for bit; and the counters count batches."""

import math
from pathlib import Path

import pytest
import torch
from support.runs import assert_same_training, checkpoint, rows
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails, inside

from ldm.checkpoint import newest
from ldm.training import resume


@pytest.mark.parametrize(
    ("command", "kind", "options"),
    [
        ("train-autoencoder", "autoencoder", [*TINY_AUTOENCODER, "discriminator.norm=batch"]),
        ("train-diffusion", "diffusion", [*TINY_DIFFUSION, "net.dropout=0.3"]),
    ],
)
def test_resume_equals_uninterrupted(ldm, pipeline, command, kind, options):
    options = [*options, *CPU, "steps=6", "schedule.decay=constant"]
    if kind == "diffusion":
        options.append(f"latents={pipeline}/runs/latents")
    ldm(command, "run=whole", *options)
    ldm(command, "run=parts", *options, "steps=2")
    ldm(command, "run=parts", *options)
    assert_same_training("runs/parts", "runs/whole", kind)
    whole = checkpoint("runs/whole", kind)
    assert whole["ldm"]["batches_seen"] == 6
    averaged = any(not torch.equal(v, whole["current_model_state"][k]) for k, v in whole["state_dict"].items())
    assert averaged, "the averaged weights must differ from the raw ones, or this test shows nothing of EMA"


def test_counters_count_batches_under_two_optimisers(pipeline):
    card = checkpoint(pipeline / "runs" / "autoencoder", "autoencoder")["ldm"]
    assert (card["batches_seen"], card["images_seen"]) == (4, 16)
    assert newest(pipeline / "runs" / "autoencoder").name == "00000004.ckpt"
    log = rows(pipeline / "runs" / "autoencoder")
    assert [int(row["step"]) + 1 for row in log] == [float(row["batches"]) for row in log] == [1, 2, 3, 4]
    assert log[0]["train/disc_loss"] == ""  # disc_start=1: the first batch has no discriminator
    assert log[1]["train/disc_loss"] != ""
    assert [row["val/psnr"] != "" for row in log] == [False, True, False, True]


def test_run_folder_holds_what_a_user_looks_for(pipeline):
    for run, pictures in (("autoencoder", "reconstructions"), ("diffusion", "samples")):
        folder = pipeline / "runs" / run
        for name in ("config.yaml", "curves.png", "metrics.csv", f"{pictures}/00000002.png", "log.txt"):
            assert (folder / name).stat().st_size > 0, name
        assert len(list((folder / "checkpoints").iterdir())) == 2


def test_old_checkpoints_are_pruned(ldm, pipeline):
    ldm("train-diffusion", *TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "every=1", "keep=3")
    names = sorted(p.name for p in Path("runs/diffusion/checkpoints").iterdir())
    assert names == ["00000002.ckpt", "00000003.ckpt", "00000004.ckpt"]


@pytest.mark.slow
def test_the_stretch_between_two_saves_may_change(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "schedule.decay=constant"]
    ldm("train-diffusion", "run=whole", *options, "steps=6", "every=3")
    ldm("train-diffusion", *options, "steps=1")  # every=2 is cut to 1
    ldm("train-diffusion", *options, "steps=4")
    ldm("train-diffusion", *options, "steps=6", "every=3", "net.checkpoint=true")
    assert_same_training("runs/diffusion", "runs/whole", "diffusion")


def test_the_log_goes_on_without_gaps_or_repeats(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents"]
    ldm("train-diffusion", *options, "steps=4")
    next(iter(sorted(Path("runs/diffusion/checkpoints").iterdir(), reverse=True))).unlink()  # as if killed after step 2
    ldm("train-diffusion", *options, "steps=6")
    assert [float(row["batches"]) for row in rows("runs/diffusion")] == [1, 2, 3, 4, 5, 6]


def test_training_follows_the_schedule_in_batches(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "steps=4", "schedule.warmup=1"]
    ldm("train-diffusion", *options, "optimizer.lr=0.01", "schedule.decay=cosine")
    rates = [float(row["train/lr"]) for row in rows("runs/diffusion")]
    assert rates == pytest.approx([0.005, 0.01, 0.0075, 0.0025])


def test_more_steps_go_on_by_the_tail_and_say_what_becomes_of_the_rate(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "schedule.warmup=0", "optimizer.lr=0.01"]
    ldm("train-diffusion", *options, "steps=4")
    ldm("train-diffusion", *options, "steps=8", "schedule.resume=0.5")
    ldm("train-diffusion", *options, "steps=8")  # is done
    rates = [float(row["train/lr"]) / 0.01 for row in rows("runs/diffusion")]
    quarters = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert rates == pytest.approx([*quarters, *(0.5 * quarter for quarter in quarters)], rel=1e-5)
    said = "lr goes from 0.00146 to 0.005 by schedule.resume=0.5 (anew lays the cosine over all steps, tail goes on"
    assert said in Path("runs/diffusion/log.txt").read_text()


def test_another_rate_is_another_run_and_says_how_to_start_it(ldm, pipeline):
    inside(pipeline, ldm)
    said = fails("train-diffusion", *TINY_DIFFUSION, *CPU, "optimizer.lr=0.01")
    assert "with optimizer.lr=0.001 (now 0.01): keep that, or start run=NEW init=runs/diffusion" in said
    said = fails("train-diffusion", *TINY_DIFFUSION, *CPU, "net.model_channels=48")
    assert "net.model_channels=24 (now 48)" in said
    assert said.endswith("keep that, or start run=NEW from the beginning, as these weights do not fit it")


@pytest.fixture
def begun(monkeypatch):
    """A run with one checkpoint, whose config names no shortcut and the probe that it was begun by."""
    card = {
        "kind": "autoencoder",
        "batches_seen": 4,
        "autoencoder": {"channels": 8},
        "config": {"vae": {"channels": 8}, "probe": {"diffusion": ["steps=2"]}},
    }
    monkeypatch.setattr(resume.checkpoints, "newest", lambda run: run / "a.ckpt")
    monkeypatch.setattr(
        resume.checkpoints, "find", lambda run, kind, **_: (run / "a.ckpt", {resume.checkpoints.CARD: card})
    )


def test_a_run_from_before_an_option_goes_on_where_that_is_off(begun):
    wanted = {"kind": "autoencoder", "autoencoder": {"channels": 8, "shortcut": False}}
    assert resume.resume_point(Path("run"), wanted) == (Path("run/a.ckpt"), 4)
    with pytest.raises(ValueError, match=r"started with autoencoder\.shortcut=False \(now True\)"):
        resume.resume_point(Path("run"), wanted | {"autoencoder": {"channels": 8, "shortcut": True}})


def test_a_generator_from_before_an_option_goes_on_where_that_is_off(begun, monkeypatch):
    unet = {"_target_": "ldm.models.unet.UNet", "model_channels": 8}
    text = {"_target_": "ldm.conditioning.text.Captions", "width": 8}
    card = {"kind": "diffusion", "batches_seen": 4, "net": unet, "config": {"net": unet, "condition": text}}
    monkeypatch.setattr(
        resume.checkpoints, "find", lambda run, kind, **_: (run / "a.ckpt", {resume.checkpoints.CARD: card})
    )
    off, on = ({"net": unet | {"scale_shift": so}, "condition": text | {"pooled": so}} for so in (False, True))
    wanted = {"kind": "diffusion", "net": off["net"], "config": off}
    assert resume.resume_point(Path("run"), wanted)[1] == 4
    with pytest.raises(ValueError, match=r"started with net\.scale_shift=False \(now True\), condition\.pooled=False"):
        resume.resume_point(Path("run"), wanted | {"net": on["net"], "config": on})
    first = {"_target_": "ldm.conditioning.labels.Labels"}  # what networks were told before there was a choice
    del card["config"]["condition"]
    assert resume.resume_point(Path("run"), {"kind": "diffusion", "condition": first, "config": {"condition": first}})


def test_an_autoencoder_goes_on_whatever_its_probe_asks_of_the_next_commands(begun):
    wanted = {"kind": "autoencoder", "autoencoder": {"channels": 8}, "config": {"probe": {"diffusion": ["steps=4"]}}}
    assert resume.resume_point(Path("run"), wanted, frozenset({"probe"})) == (Path("run/a.ckpt"), 4)
