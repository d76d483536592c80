"""The commands as a user meets them: what they leave behind, their help, and the likely mistakes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, run_command

from ldm.checkpoint import load_autoencoder, load_diffusion
from ldm.cli import COMMANDS


def fails(name, *overrides):
    """Run a command that must fail, and return its line."""
    with pytest.raises(SystemExit) as info:
        run_command(name, *overrides)
    line = str(info.value.code)
    assert line.startswith("ldm: error: ")
    assert "\n" not in line
    return line


def inside(pipeline, ldm):
    """Work in the pipeline's own folder."""
    os.chdir(pipeline)
    return ldm


def test_samples_and_scores(ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "num=23", "batch_size=10", "sampler.steps=2")
    with np.load("runs/samples/samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert (images.shape, images.dtype) == ((23, 32, 32, 3), np.uint8)
    assert (labels.dtype, labels.tolist()) == (np.int64, [i % 10 for i in range(23)])
    for name in ("grid.png", "trajectory.png"):
        with Image.open(f"runs/samples/{name}") as picture:
            assert min(picture.size) > 60
    ldm("evaluate", "classifier=svc")
    metrics = json.loads(Path("runs/metrics/metrics.json").read_text())
    distance = metrics["frechet_distance"]
    assert (distance["images"], distance["reference"]["images"]) == (23, 1500)
    assert metrics["class_accuracy"]["classifier_on_held_out_images"] >= 0.97
    assert metrics["reconstruction"]["images"] == 297
    assert metrics["reconstruction"]["lpips_weights"] == "random VGG16 weights"
    assert metrics["reconstruction"]["rfd"] > 0
    assert metrics["samples"]["evaluations"] == 3
    assert metrics["samples"]["model"] == load_diffusion("runs/diffusion").fingerprint
    assert metrics["samples"]["autoencoder"] == load_autoencoder("runs/autoencoder").fingerprint


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_samples_do_not_depend_on_the_batch_size(ldm, pipeline, sampler):
    inside(pipeline, ldm)
    results = []
    for size in (3, 7):
        ldm("sample", "run=seeded", "num=7", f"batch_size={size}", f"sampler={sampler}", "sampler.steps=3")
        results.append(np.load("runs/seeded/samples.npz")["arr_0"].astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1  # convolutions round differently for other batch sizes


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_ranks(pipeline):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ldm.sample"]
    options = ["num=7", "sampler=ddpm", "sampler.steps=3"]
    for command, run in (([sys.executable, "-m", "ldm.sample"], "run=one"), (launch, "run=two")):
        subprocess.run([*command, *options, run], cwd=pipeline, check=True, capture_output=True)
    one, two = (np.load(pipeline / "runs" / run / "samples.npz") for run in ("one", "two"))
    assert np.abs(one["arr_0"].astype(int) - two["arr_0"].astype(int)).max() <= 1
    assert np.array_equal(one["arr_1"], two["arr_1"])


def test_chosen_classes(ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "run=chosen", "num=4", "classes=[3,5]", "sampler.steps=1", "guidance=1")
    assert np.load("runs/chosen/samples.npz")["arr_1"].tolist() == [3, 5, 3, 5]


def test_sweep_makes_a_folder_a_point(ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "-m", "run=sweep", "num=2", "sampler=euler,ddim", "sampler.steps=1")
    for sampler in ("euler", "ddim"):
        assert (pipeline / f"runs/sweep/num=2,sampler.steps=1,sampler={sampler}/samples.npz").exists()


def test_wandb_logs_offline_without_a_key(ldm, pipeline, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    ldm("train-diffusion", *TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "logger=wandb", "steps=2")
    import wandb

    wandb.finish()
    assert list(Path("runs/diffusion/wandb").glob("offline-run-*/*.wandb"))


def test_job_array_of_slices_makes_one_cache(ldm, pipeline):
    inside(pipeline, ldm)
    for i in range(2):
        ldm("cache-latents", "run=array", "shard_size=600", f"slice={i}/2")
    whole, array = (json.loads(Path(f"runs/{run}/manifest.json").read_text()) for run in ("latents", "array"))
    assert whole == array


def test_cached_latents_are_normalised(pipeline):
    from ldm.data.latents import CachedMoments, LatentCache
    from ldm.latents import sample_moments

    cache = LatentCache(str(pipeline / "runs/latents"), "full")
    moments, _ = CachedMoments(cache, "train").__getitems__([(0, i) for i in range(1500)])
    latent = cache.stats.normalize(sample_moments(moments))
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latent.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


# mistakes


def test_mistyped_overrides(ldm):
    assert "Could not override 'stpes'" in fails("train-autoencoder", "stpes=3")
    assert "objective/flwo" in fails("train-diffusion", "objective=flwo")
    assert "Could not override 'optimizer.lrr'" in fails("train-autoencoder", "optimizer.lrr=3")


def test_missing_and_empty_folders(ldm):
    assert "data.root=nowhere does not exist" in fails("train-autoencoder", "data=folder", "data.root=nowhere", *CPU)
    Path("empty").mkdir()
    assert "data.root=empty holds no images" in fails("train-autoencoder", "data=folder", "data.root=empty", *CPU)
    assert "data.root" in fails("train-autoencoder", "data=folder")
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
    assert "belongs to ldm train_autoencoder: choose another run=" in fails("train-diffusion", "run=autoencoder")


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
        assert "that is whole: all 2 are damaged" in fails(name, *extra)


def test_checkpoint_with_code_in_it_is_not_executed(ldm, pipeline):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (Path("exploded"),))

    torch.save({"ldm": Bomb()}, "bomb.ckpt")
    assert "bomb.ckpt is damaged or no checkpoint" in fails("sample", "model=bomb.ckpt")
    checkpoint = torch.load(next((pipeline / "runs/diffusion/checkpoints").iterdir()), weights_only=True)
    for target in ("os.mkdir", "ldm.files.os.mkdir"):
        checkpoint["ldm"]["net"] = {"_target_": target, "path": "exploded"}
        torch.save(checkpoint, "bomb.ckpt")
        assert f"refusing to build {target}" in fails("sample", "model=bomb.ckpt")
    assert not Path("exploded").exists()


def test_other_mistakes_are_caught_before_any_compute(ldm, pipeline):
    inside(pipeline, ldm)
    assert "classes=[12] must be null or name some of 0 ... 9" in fails("sample", "run=z", "classes=[12]")
    assert "sampler.steps must be at least 1" in fails("sample", "run=z", "sampler.steps=0")
    assert "pass data.resolution=32" in fails("evaluate", "run=m", f"samples={noise_samples()}", "data.resolution=16")
    assert "slice=2/2 must be I/N" in fails("cache-latents", "run=c", "slice=2/2")
    assert "steps=5 must be a multiple of every=2" in fails("train-autoencoder", "run=s", *TINY_AUTOENCODER, "steps=5")
    line = fails("train-autoencoder", *TINY_AUTOENCODER, *CPU, "ema_decay=0.5")
    assert "was started with ema_decay=0.999 (now 0.5): keep that" in line
    assert "not a multiple of the autoencoder's factor 4" in fails("train-autoencoder", "run=r", "data.resolution=30")
    line = fails("train-diffusion", "run=e", "objective=flow", "objective.parameterization=eps")
    assert "use v, velocity or x0" in line


def test_a_refused_resume_names_what_changed_and_changes_nothing(ldm, pipeline):
    inside(pipeline, ldm)
    files = {p: p.read_bytes() for p in Path("runs/autoencoder").rglob("*") if p.is_file() and p.name != "log.txt"}
    line = fails("train-autoencoder", *TINY_AUTOENCODER, *CPU, "vae.latent_channels=3", "optimizer.lr=1e-5")
    assert "autoencoder.latent_channels=4 (now 3)" in line
    assert "optimizer.lr=0.001 (now 1e-05)" in line
    assert {p: p.read_bytes() for p in files} == files


def test_a_refused_command_leaves_no_folder(ldm):
    fails("train-diffusion", "run=oops", "latents=nowhere")
    assert not Path("runs/oops").exists()


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("train-autoencoder", "steps=0", "steps=0 must be a whole number of at least 1"),
        ("train-autoencoder", "steps=1.5", "steps=1.5 must be a whole number"),
        ("train-autoencoder", "+vae.foo=1", "vae: Autoencoder.__init__() got an unexpected keyword argument 'foo'"),
        ("train-autoencoder", "+trainer.max_epochs=3", "trainer.max_epochs can't be chosen"),
        ("train-autoencoder", "trainer.accelerator=cuda", "trainer: "),
        ("train-autoencoder", "data.resolution=20", "data.resolution=20 is too small: the discriminator needs 24"),
        ("sample", "device=cuda", "device=cuda, but torch finds no CUDA device"),
        ("sample", "num=0", "num=0 must be"),
        ("sample", "classes=[a]", "classes=['a'] must be null or name some of 0 ... 9"),
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


def test_steps_may_be_written_as_a_float(ldm, pipeline):
    ldm("sample", f"model={pipeline}/runs/diffusion", "num=1e1", "sampler.steps=1", "classes=3")
    assert np.load("runs/samples/samples.npz")["arr_1"].tolist() == [3] * 10


def test_a_cache_keeps_its_own_autoencoder(ldm, pipeline):
    """Stage 1 trains on, and its old checkpoint is pruned; the cache goes on working."""
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "keep=1", "steps=2")
    ldm("cache-latents")
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "keep=1")
    ldm("train-diffusion", *TINY_DIFFUSION, *CPU, "steps=2")
    ldm("sample", "num=1", "sampler.steps=1")
    assert (
        load_autoencoder("runs/latents/autoencoder.ckpt").fingerprint
        == load_diffusion("runs/diffusion").card["autoencoder"]
        != load_autoencoder("runs/autoencoder").fingerprint
    )


def test_grid_has_a_row_a_class():
    from ldm.sample import rows_of_classes

    samples = torch.arange(1000)
    images, columns = rows_of_classes(samples, 10)
    assert columns == 10
    assert torch.equal(images.reshape(10, 10) % 10, torch.arange(10)[:, None].expand(10, 10))
    images, columns = rows_of_classes(samples[:23], 10)
    assert torch.equal(images.reshape(10, columns) % 10, torch.arange(10)[:, None].expand(10, columns))
    images, columns = rows_of_classes(samples[:40], 1)
    assert images.tolist() == list(range(40))


def test_interrupt_says_what_the_same_command_does(pipeline):
    command = [sys.executable, "-m", "ldm", "train-diffusion", *TINY_DIFFUSION, *CPU, "steps=1e4", "run=interrupted"]
    running = subprocess.Popen(
        command,
        cwd=pipeline,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    try:
        while not (pipeline / "runs/interrupted/checkpoints").exists() and running.poll() is None:
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 1
    assert errors.strip().splitlines()[-1] == "ldm: interrupted; the same command goes on from the last checkpoint"


def test_features_files_through_the_command(ldm):
    class Mean(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float().mean((2, 3))

    example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters
        torch.jit.save(torch.jit.script(Mean()), "mean.pt")
        torch.export.save(torch.export.export(Mean(), (example,), dynamic_shapes=({0: batch},)), "mean.pt2")
    values = []
    for file in ("mean.pt", "mean.pt2"):
        ldm("evaluate", f"samples={noise_samples()}", "reconstruction=false", f"features={file}")
        values.append(json.loads(Path("runs/metrics/metrics.json").read_text())["frechet_distance"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_pixels_are_no_features_for_photographs(ldm):
    Path("photos").mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32)).save(f"photos/{i}.png")
    options = [f"samples={noise_samples()}", "data=folder", "data.root=photos", "data.resolution=32"]
    assert "features=pixels is for the digits only" in fails("evaluate", *options, "features=pixels")


def noise_samples():
    rng = np.random.default_rng(0)
    np.savez("noise.npz", arr_0=rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return "noise.npz"


def test_foreign_samples_are_scored_too(ldm):
    ldm("evaluate", f"samples={noise_samples()}", "reconstruction=false")
    metrics = json.loads(Path("runs/metrics/metrics.json").read_text())
    assert metrics["frechet_distance"]["images"] == 8
    assert "pass autoencoder=PATH, or reconstruction=false" in fails("evaluate", "samples=noise.npz")


def test_guidance_needs_label_dropout(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "label_dropout=0", "guidance=1", "steps=2"]
    ldm("train-diffusion", *options)
    assert "needs label_dropout > 0 in training: pass guidance=1" in fails("sample", "num=1", "guidance=2")
    ldm("sample", "num=1", "guidance=1", "sampler.steps=1")


def test_a_mistake_is_one_line_without_a_stack_trace(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    command = [sys.executable, "-m", "ldm", "sample", "model=nowhere"]
    plain = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.count("\n") == 1
    traced = subprocess.run(
        command, cwd=tmp_path, env=environment | {"HYDRA_FULL_ERROR": "1"}, capture_output=True, text=True
    )
    assert "Traceback" in traced.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_its_groups_and_an_example(name, capsys):
    with pytest.raises(SystemExit):
        run_command(name, "--help")
    text = capsys.readouterr().out
    assert f"ldm {name} " in text
    assert "Example:" in text
    assert "== Config" in text
