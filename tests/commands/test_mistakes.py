"""The likely mistakes: each ends in one line that names the key or the file and the fix, and changes nothing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.tiny import AS_TRAINED, CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails, inside, noise_samples

from ldm.checkpoint import load_autoencoder


def test_missing_and_empty_folders(ldm):
    assert "data.root=nowhere does not exist" in fails("train-autoencoder", "data=folder", "data.root=nowhere", *CPU)
    Path("empty").mkdir()
    assert "data.root=empty holds no images" in fails("train-autoencoder", "data=folder", "data.root=empty", *CPU)
    assert "runs/autoencoder holds no checkpoint" in fails("cache-latents")
    assert "latents=elsewhere does not exist" in fails("train-diffusion", "latents=elsewhere")
    assert "latents=runs/latents does not exist" in fails("train-diffusion")
    assert "runs/diffusion holds no checkpoint" in fails("sample")
    assert "samples=runs/samples holds no samples.npz" in fails("evaluate")


def test_corrupt_jpeg(ldm):
    for i in range(12):
        Path("photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (i * 20, 0, 0)).save(f"photos/{i}.jpg")
    Path("photos/5.jpg").write_bytes(Path("photos/5.jpg").read_bytes()[:300])
    options = [*TINY_AUTOENCODER, *CPU, "data=folder", "data.root=photos", "data.resolution=32", "batch_size=11"]
    assert "cannot decode photos/5.jpg" in fails("train-autoencoder", *options)
    ldm("train-autoencoder", *options, "data.on_error=skip")


def test_stage_one_given_as_stage_two(ldm, pipeline):
    inside(pipeline, ldm)
    line = fails("sample", "run=wrong", "model=runs/autoencoder")
    assert "holds an autoencoder (stage 1), but a diffusion model (stage 2) is wanted" in line
    assert "belongs to ldm train-autoencoder: choose another run=" in fails("train-diffusion", "run=autoencoder")


def test_cache_of_another_autoencoder(ldm, pipeline):
    inside(pipeline, ldm)
    before = load_autoencoder("runs/autoencoder").fingerprint
    ldm("train-autoencoder", "run=other", *TINY_AUTOENCODER, *CPU, "seed=1", "steps=2")
    line = fails("train-diffusion", "run=x", "autoencoder=runs/other")
    assert f"was made with the autoencoder {before}, but runs/other holds" in line
    assert "was made with the autoencoder" in fails("sample", "run=y", "autoencoder=runs/other")
    line = fails("cache-latents", "run=latents", "autoencoder=runs/other", "shard_size=600")
    assert "holds shards of another cache (autoencoder is" in line
    assert json.loads(Path("runs/latents/manifest.json").read_text())["autoencoder"] == before


def test_truncated_checkpoint(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents"]
    ldm("train-diffusion", *options)
    first, last = sorted(Path("runs/diffusion/checkpoints").iterdir())
    whole = last.read_bytes()
    last.write_bytes(whole[:-1000])
    ldm("sample", "num=1", "sampler.steps=1")
    log = Path("runs/samples/log.txt").read_text()
    assert "00000004.ckpt is damaged" in log
    assert "going back to the one before it" in log
    assert json.loads(Path("runs/samples/sample.json").read_text())["batches_trained"] == 2
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    last.write_bytes(flipped)
    assert "00000004.ckpt is damaged" in fails("sample", "num=1", f"model={last}")
    ldm("train-diffusion", *options)  # from 2
    one, other = (torch.load(io.BytesIO(b), weights_only=True)["state_dict"] for b in (last.read_bytes(), whole))
    assert all(torch.equal(one[key], other[key]) for key in other)
    for file in (first, last):
        file.write_bytes(b"")
    for name, extra in (("train-diffusion", [*options, "steps=6"]), ("sample", ["num=1"])):
        assert "holds no checkpoint that is whole: runs/" in fails(name, *extra)


def test_checkpoint_with_code_in_it_is_not_executed(ldm, pipeline):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (Path("exploded"),))

    torch.save({"ldm": Bomb()}, "bomb.ckpt")
    assert "bomb.ckpt is damaged or no checkpoint" in fails("sample", "model=bomb.ckpt")
    checkpoint = torch.load(next((pipeline / "runs/diffusion/checkpoints").iterdir()), weights_only=True)
    for target, advice in (("os.mkdir", "no model needs that"), ("ldm.runtime.files.os.mkdir", "trust=[ldm]")):
        checkpoint["ldm"]["net"] = {"_target_": target, "path": "exploded"}
        torch.save(checkpoint, "bomb.ckpt")
        line = fails("sample", "model=bomb.ckpt")
        assert f"bomb.ckpt: refusing to build {target}" in line
        assert advice in line
    assert not Path("exploded").exists()


def test_other_mistakes_are_caught_before_any_compute(ldm, pipeline):
    inside(pipeline, ldm)
    assert "classes=[12] must be null, or name some of 0 ... 9" in fails("sample", "run=z", "classes=[12]")
    assert "sampler.steps=0 must be at least 1" in fails("sample", "run=z", "sampler.steps=0")
    assert "pass data.resolution=32" in fails("evaluate", "run=m", f"samples={noise_samples()}", "data.resolution=16")
    assert "slice=2/2 must be I/N" in fails("cache-latents", "run=c", "slice=2/2")
    assert "steps=5 must be a multiple of every=2" in fails("train-autoencoder", "run=s", *TINY_AUTOENCODER, "steps=5")
    line = fails("train-autoencoder", *AS_TRAINED, "ema_decay=0.5")
    assert "was started with ema_decay=0.999 (now 0.5): keep that" in line
    line = fails("train-autoencoder", *AS_TRAINED, "autoencoder.shortcut=true")
    assert "was started with autoencoder.shortcut=False (now True)" in line
    assert "not a multiple of the autoencoder's factor 4" in fails("train-autoencoder", "run=r", "data.resolution=30")
    line = fails("train-diffusion", "run=e", "objective=flow", "objective.parameterization=eps")
    assert "use v, velocity or x0" in line


def test_a_refused_resume_names_what_changed_and_changes_nothing(ldm, pipeline):
    inside(pipeline, ldm)
    files = {p: p.read_bytes() for p in Path("runs/autoencoder").rglob("*") if p.is_file() and p.name != "log.txt"}
    line = fails("train-autoencoder", *AS_TRAINED, "autoencoder.latent_channels=3", "optimizer.lr=1e-5")
    assert "autoencoder.latent_channels=4 (now 3)" in line
    assert "optimizer.lr=0.001 (now 1e-05)" in line
    assert {p: p.read_bytes() for p in files} == files


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("train-autoencoder", "steps=0", "steps=0 must be at least 1"),
        ("train-autoencoder", "steps=1.5", "steps=1.5 must be a whole number"),
        (
            "train-autoencoder",
            "+autoencoder.foo=1",
            "autoencoder.foo is no option of Autoencoder",
        ),
        ("train-autoencoder", "+trainer.max_epochs=3", "trainer.max_epochs can't be chosen"),
        ("train-autoencoder", "trainer.accelerator=cuda", "; trainer=auto takes what this machine has"),
        ("train-autoencoder", "data.resolution=20", "data.resolution=20 is too small: the discriminator needs 24"),
        ("sample", "device=cuda", "device=cuda is none that torch finds here: pass device=auto"),
        ("sample", "num=0", "num=0 must be"),
        ("sample", "classes=[a]", "classes=['a'] must be null, or name some of 0 ... 9 or of their names"),
    ],
)
def test_bad_values(ldm, pipeline, name, override, message):
    if "cuda" in override and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    options = {
        "train-autoencoder": [*TINY_AUTOENCODER, "trainer.devices=1"],
        "sample": [f"model={pipeline}/runs/diffusion"],
    }
    assert message in fails(name, *options[name], override)


def test_pixels_are_no_features_for_photographs(ldm):
    Path("photos").mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32)).save(f"photos/{i}.png")
    options = [f"samples={noise_samples()}", "data=folder", "data.root=photos", "data.resolution=32"]
    assert "features=pixels is for the digits only" in fails("evaluate", *options, "features=pixels")


def test_guidance_needs_label_dropout(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "label_dropout=0", "guidance=1", "steps=2"]
    ldm("train-diffusion", *options)
    assert "needs label_dropout > 0 in training: pass guidance=1" in fails("sample", "num=1", "guidance=2")
    ldm("sample", "num=1", "guidance=1", "sampler.steps=1")


def test_a_mistake_is_one_line_without_a_stack_trace(ldm, tmp_path, monkeypatch):
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    command = [sys.executable, "-m", "ldm", "sample", "model=nowhere"]
    plain = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.count("\n") == 1
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="nowhere holds no checkpoint"):  # not SystemExit: Python prints its trace
        ldm("sample", "model=nowhere")


def test_results_of_other_settings_are_not_overwritten_silently(ldm, pipeline):
    model = f"model={pipeline}/runs/diffusion"
    ldm("sample", model, "num=2", "sampler.steps=1", "guidance=1.5")
    before = Path("runs/samples/samples.npz").read_bytes()
    line = fails("sample", model, "num=2", "sampler.steps=1", "guidance=3")
    assert "runs/samples holds results of guidance=1.5 (now 3): choose another run=, or pass overwrite=true" in line
    assert Path("runs/samples/samples.npz").read_bytes() == before
    ldm("sample", model, "num=2", "sampler.steps=1", "guidance=1.5", "batch_size=1", "logger=csv")  # changes nothing
    ldm("sample", model, "num=2", "sampler.steps=1", "guidance=3", "overwrite=true")
    assert json.loads(Path("runs/samples/sample.json").read_text())["guidance"] == 3
