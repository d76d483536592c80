"""The commands as a user meets them: what they leave behind, their help, and the likely mistakes."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails, inside, noise_samples

from ldm.checkpoint import load_autoencoder, load_diffusion


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
    depends = metrics["frechet_distance"]["depends"]
    assert (depends["samples"], depends["reference"]["images"]) == (23, 1500)
    assert metrics["class_accuracy"]["classifier_on_held_out_images"] >= 0.97
    assert metrics["reconstruction"]["images"] == 297
    assert metrics["reconstruction"]["depends"]["lpips_weights"] == "random VGG16 weights"
    assert metrics["reconstruction"]["rfd"] > 0
    assert metrics["samples"]["evaluations"] == 4
    assert metrics["samples"]["model"] == load_diffusion("runs/diffusion").fingerprint
    assert metrics["samples"]["autoencoder"] == load_autoencoder("runs/autoencoder").fingerprint


def test_a_commands_log_ends_with_it(ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "run=logged", "num=1", "sampler.steps=1")
    logging.getLogger("ldm").warning("of somebody else")
    assert not Path("runs/logged/log.txt").exists()  # it had nothing to say itself


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_samples_do_not_depend_on_the_batch_size(ldm, pipeline, sampler):
    inside(pipeline, ldm)
    results = []
    for size in (3, 7):
        ldm("sample", f"run=seeded-{sampler}", "num=7", f"batch_size={size}", f"sampler={sampler}", "sampler.steps=3")
        results.append(np.load(f"runs/seeded-{sampler}/samples.npz")["arr_0"].astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1  # convolutions round differently for other batch sizes


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_ranks(ldm, pipeline):
    """By torchrun itself; other tests' ranks have its environment."""
    inside(pipeline, ldm)
    options = ["num=7", "sampler=ddpm", "sampler.steps=3"]
    ldm("sample", *options, "run=one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ldm", "sample"]
    subprocess.run([*launch, *options, "run=two"], check=True, capture_output=True)
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
        assert (pipeline / f"runs/sweep/sampler={sampler}/samples.npz").exists()


def test_job_array_of_slices_makes_one_cache(ldm, pipeline):
    inside(pipeline, ldm)
    for i in range(2):
        ldm("cache-latents", "run=array", "shard_size=600", f"slice={i}/2")
    whole, array = (json.loads(Path(f"runs/{run}/manifest.json").read_text()) for run in ("latents", "array"))
    assert whole == array


def test_cached_latents_are_normalised(pipeline):
    from ldm.data.cache_reader import CachedMoments, LatentCache
    from ldm.latents import sample_moments

    cache = LatentCache(str(pipeline / "runs/latents"), "full")
    moments, *_ = CachedMoments(cache, "train").__getitems__([(0, i) for i in range(1500)])
    latent = cache.stats.normalize(sample_moments(moments))
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latent.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_steps_may_be_written_as_a_float(ldm, pipeline):
    ldm("sample", f"model={pipeline}/runs/diffusion", "num=1e1", "sampler.steps=1", "classes=3")
    assert np.load("runs/samples/samples.npz")["arr_1"].tolist() == [3] * 10


@pytest.mark.slow
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
        ldm("evaluate", f"run={file}", f"samples={noise_samples()}", "reconstruction=false", f"features={file}")
        values.append(json.loads(Path(f"runs/{file}/metrics.json").read_text())["frechet_distance"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_foreign_samples_are_scored_too(ldm):
    ldm("evaluate", f"samples={noise_samples()}", "reconstruction=false")
    metrics = json.loads(Path("runs/metrics/metrics.json").read_text())
    assert metrics["frechet_distance"]["depends"]["samples"] == 8
    assert "pass autoencoder=PATH, or reconstruction=false" in fails("evaluate", "samples=noise.npz")
