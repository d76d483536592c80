"""Stage 1's training: accumulation, two processes, what learns and what stays as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.processes import ranks
from support.runs import assert_close_weights, checkpoint, rows, weights
from support.tiny import CPU, EXACT_AUTOENCODER, TINY_AUTOENCODER

from ldm.latents import DiagonalGaussian
from ldm.losses.adversarial import adaptive_weight


def assert_same_training(one, other):
    assert_close_weights(one, other, "autoencoder", rtol=1e-7, atol=1e-7)
    trained, untrained = (weights(run, "autoencoder") for run in (one, "runs/untrained"))
    assert any(not torch.equal(trained[k], v) for k, v in untrained.items() if k.startswith("autoencoder"))


@pytest.fixture
def untrained(ldm):
    ldm("train-autoencoder", *EXACT_AUTOENCODER, "run=untrained", "optimizer.lr=1e-30", "disc_optimizer.lr=1e-30")


def test_accumulation_equals_one_big_batch(ldm, untrained):
    for run, accumulate in (("whole", 1), ("parts", 3)):
        ldm("train-autoencoder", *EXACT_AUTOENCODER, "batch_size=6", f"run={run}", f"accumulate={accumulate}")
    for a, b in zip(rows("runs/whole"), rows("runs/parts"), strict=True):
        for key in ("train/disc_weight", "train/grad_norm", "train/disc_grad_norm", "train/l1"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-9), key
    assert_same_training("runs/whole", "runs/parts")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_two_processes_equal_one_with_the_joint_batch(ldm, untrained, norm):
    r1 = ["loss.r1=0"] if norm == "batch" else []  # R1 needs logits of one image each
    options = [*EXACT_AUTOENCODER, f"discriminator.norm={norm}", *r1, "trainer.limit_val_batches=1.0"]
    ldm("train-autoencoder", *options, "run=one", "batch_size=8")
    two = [*options, "run=two", "batch_size=4"]
    if norm == "group":  # Lightning starts the second process, by the same command line
        command = [sys.executable, "-m", "ldm", "train-autoencoder", *two, "trainer.devices=2"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.count("next: ldm ") == 1  # rank 0 speaks for both
    else:
        ranks("train-autoencoder", *two)
    one, both = rows("runs/one"), rows("runs/two")  # of losses, these hold rank 0's own
    for a, b in zip(one, both, strict=True):
        assert a["images"] == b["images"]
        for key in ("train/disc_weight", "train/grad_norm", "train/disc_grad_norm"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-9), key
    scores = [(float(a["val/l1"]), float(b["val/l1"])) for a, b in zip(one, both, strict=True) if a["val/l1"]]
    assert scores  # of 297 images: 149 and 148
    assert all(a == pytest.approx(b, rel=1e-6) for a, b in scores)
    assert_same_training("runs/one", "runs/two")


def test_the_fresh_forward_draws_again_and_reuse_does_not(ldm, monkeypatch):
    draws, sample = [], DiagonalGaussian.sample
    monkeypatch.setattr(DiagonalGaussian, "sample", lambda self: draws.append(1) or sample(self))
    counts = {}
    for forward in ("reuse", "fresh"):
        draws.clear()
        options = [*TINY_AUTOENCODER, *CPU, "loss.disc_start=0", f"loss.disc_forward={forward}"]
        ldm("train-autoencoder", *options, f"run={forward}")
        counts[forward] = len(draws)
    assert counts == {"reuse": 4, "fresh": 8}


def test_the_learned_logvar_learns(ldm):
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "loss.learn_logvar=true", "loss.reduction=sum")
    assert weights("runs/autoencoder", "autoencoder")["loss.logvar"] != 0
    assert float(rows("runs/autoencoder")[-1]["train/logvar"]) != 0


def test_lr_per_image_is_times_the_global_batch_and_said(ldm, capsys):
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "lr_per_image=1e-5", "schedule.warmup=0")
    assert float(rows("runs/autoencoder")[0]["train/lr"]) == pytest.approx(4e-5)
    log = Path("runs/autoencoder/log.txt").read_text()
    assert "global batch 4 = 4 images x 1 ranks" in log
    assert "lr 4e-05, disc_lr 4e-05 (lr_per_image 1e-05)" in log
    figures, following = capsys.readouterr().out.splitlines()[-2:]
    last = rows("runs/autoencoder")[-1]
    assert f"val/loss {float(last['val/loss']):.4g}, val/psnr {float(last['val/psnr']):.4g}" in figures
    assert following == "next: ldm cache-latents autoencoder=runs/autoencoder"


def test_decoder_alone(ldm, pipeline):
    autoencoder = f"{pipeline}/runs/autoencoder"
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "run=short", "autoencoder.shortcut=true")
    for start, options in ((autoencoder, []), ("runs/short", ["autoencoder.shortcut=true"])):
        run = f"run=tuned{len(options)}"
        ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, run, f"init={start}", "trained=decoder", *options)
        found = (checkpoint(folder, "autoencoder")["state_dict"] for folder in (start, f"runs/{run[4:]}"))
        before, after = found
        kept = [k for k in after if k.startswith(("autoencoder.encoder", "autoencoder.quant_conv"))]  # a shortcut, too
        assert all(torch.equal(before[key], after[key]) for key in kept)
        moved = [k for k in after if k.startswith("autoencoder.decoder") and not torch.equal(before[k], after[k])]
        assert "autoencoder.decoder.conv_out.weight" in moved
        assert ("autoencoder.decoder_shortcut.weight" in moved) == bool(options)
    with pytest.raises(SystemExit, match=r"another shape: pass 'autoencoder\.channels=8'"):
        ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "run=x", f"init={autoencoder}", "autoencoder.channels=16")
    with pytest.raises(SystemExit, match="pass init=RUN"):
        ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "run=x", "trained=decoder")


def test_weight_at_its_clamp_is_flagged():
    assert adaptive_weight(torch.ones(3), torch.zeros(3)) >= 1e4


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("+trainer.gradient_clip_val=1", r"two: pass guard\.clip="),
        ("+trainer.accumulate_grad_batches=2", "is accumulate= here"),
        ("trainer.precision=bf16-true", "must be 32-true, 16-mixed, bf16-mixed"),
        ("loss.r1_every=0", "loss.r1_every=0 must be at least 1"),
        ("loss.disc_weight=-1", "loss.disc_weight=-1 must be at least 0"),
        ("guard.patience=0", "guard.patience=0 must be at least 1"),
        ("health.window=0", "health.window=0 must be at least 1"),
        ("health.rollbacks=1", r"\(keep=2 - 1\) x every=2 batches must reach back"),
        ("data.resolution=8", "too small: LPIPS needs 16 pixels"),
    ],
)
def test_options_that_would_fail_batches_later(ldm, option, said):
    with pytest.raises(SystemExit, match=said):
        ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, option)
    assert not Path("runs/autoencoder").exists()


def test_the_average_holds_the_discriminator_as_it_is(ldm):
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU)
    saved = checkpoint("runs/autoencoder", "autoencoder")
    average, current = saved["state_dict"], saved["current_model_state"]
    for key, tensor in current.items():
        if key.startswith("discriminator"):
            assert torch.equal(average[key], tensor), key
    assert not torch.equal(average["autoencoder.quant_conv.weight"], current["autoencoder.quant_conv.weight"])


def test_equivariance_with_a_fresh_forward_judges_what_the_generator_made(ldm):
    """Both players see decode(T(z)) beside T(x), also in the second forward."""
    options = [
        "regularizer=equivariance",
        "regularizer.probability=1",
        "regularizer.min_scale=0.75",
        "loss.disc_start=0",
    ]
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, *options, "loss.disc_forward=fresh")
    assert float(rows("runs/autoencoder")[-1]["train/disc_loss"]) > 0
