"""Stage 2 through its commands: objectives, samplers, guidance, likelihood, and what does not fit."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import CPU, TINY_DIFFUSION

from ldm.checkpoint import load_diffusion, newest, read
from ldm.data.cache_reader import CachedMoments, LatentCache, PairedNoise
from ldm.diffusion.coupling import OptimalTransport
from ldm.training.diffusion_module import TimeBins


def samples(run="samples"):
    with np.load(f"runs/{run}/samples.npz") as arrays:
        return arrays["arr_0"].astype(float)


@pytest.mark.parametrize("objective", ["ot_flow", "edm2", "cosine_v", "ddpm"])
def test_every_objective_trains_logs_by_time_and_samples(there, objective):
    there("train-diffusion", *TINY_DIFFUSION, *CPU, "run=it", f"objective={objective}", "batch_size=32")
    with open("runs/it/metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    bins = {key: float(value) for key, value in last.items() if "_by_time/" in key and value}
    assert {key.split("/")[0] for key in bins} == {"train_by_time", "val_by_time"}
    grid = "grid=karras" if objective == "edm2" else "grid=uniform"
    there("sample", "model=runs/it", "num=4", "sampler.steps=2", grid)
    assert np.isfinite(samples()).all()
    weights = read(newest(Path("runs/it")), "diffusion")["state_dict"]
    learned = [key for key in weights if key.startswith("weighting.out")]
    assert len(learned) == (objective == "edm2")
    assert all(weights[key].abs().sum() > 0 for key in learned)  # it started at zero


def test_ways_to_sample_change_the_samples_and_are_stamped(there):
    there("train-diffusion", *TINY_DIFFUSION, *CPU, "run=ddpm", "objective=ddpm", "optimizer.lr=0.01")
    base = ["model=runs/ddpm", "num=6", "sampler.steps=4"]
    there("sample", *base)
    there("train-diffusion", *TINY_DIFFUSION, *CPU, "run=weaker", "objective=ddpm", "steps=2", "optimizer.lr=0.02")
    first = samples()
    for i, options in enumerate(  # one each, so that none can hide behind another
        (
            ["grid=shifted"],
            ["path=linear"],
            ["weights=raw"],
            ["guidance_interval=[0.3,0.6]"],
            ["guidance_rescale=0.7"],
            ["weak=runs/weaker"],
            ["sampler=unipc"],
            ["sampler=euler_maruyama"],
        )
    ):
        there("sample", *base, *options, f"run=s{i}")
        assert np.abs(samples(f"s{i}") - first).max() > 0, options
    stamps = [json.loads(Path(f"runs/s{i}/sample.json").read_text()) for i in range(8)]
    assert stamps[0]["grid"]["shift"] == 3.0
    assert stamps[1]["path"]["_target_"].endswith("LinearPath")
    assert stamps[5]["weak"] == load_diffusion("runs/weaker").fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["grid=trailing", "path=linear", "model=runs/ddpm"], "grid starts at t = 1.0000, but here only t <="),
        (["grid=trailing", "sampler.steps=2000"], "num_steps=1000"),
        (["grid=leading"], r"the grid starts at t = 0\.502, where 50% of the variance of x_t is the latent's"),
        (["grid=karras", "grid.sigma_max=2"], r"the grid starts at t = 0\.667, where 20% .* pass grid=uniform"),
        (["grid=log_snr", "grid.low=-2"], r"the grid starts at t = 0\.731, where 12% "),
        (["sampler.function.eta=1"], r"has no function\.eta: pass sampler=ddim"),
        (["guidance_interval=[0.6,0.3]"], "0 <= low <= high <= 1"),
        (["path=ve", "sampler.steps=10", "model=runs/ddpm"], "sampler and path do not fit: .* pass grid=karras"),
        (["guidance_rescale=2"], r"guidance_rescale=2 must be at most 1"),
        (["guidance=1", "guidance_rescale=0.5"], r"guidance_rescale=0\.5 would do nothing"),
        (["weights=average"], "weights=average must be ema or raw"),
        (["weak=runs/ddpm"], "was trained with another objective"),
        (["classes=[3,10]"], r"must be null, or name some of 0 \.\.\. 9"),
        (["sampler=euler_maruyama", "sampler.function.diffusion=x"], "diffusion=x must be sigma, constant or bell"),
    ],
)
def test_what_does_not_fit_is_said_before_any_sample(there, options, said):
    if any("ddpm" in option for option in options):
        there("train-diffusion", *TINY_DIFFUSION, *CPU, "run=ddpm", "objective=ddpm")
    with pytest.raises(SystemExit, match=said):
        there("sample", "num=2", "sampler.steps=2", *options)
    assert not Path("runs/samples/samples.npz").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["objective.parameterization=eps"], "ends at alpha = 0: use v, velocity or x0"),
        (["objective=ddpm", "+objective.path.zero_terminal_snr=true"], "ends at alpha = 0"),
        (["label_dropout=0", "guidance=2"], "needs label_dropout > 0: pass guidance=1"),
        (["net.num_heads=2"], "net=digits has no num_heads"),
    ],
)
def test_what_can_not_be_trained_is_said_before_any_batch(there, options, said):
    with pytest.raises(SystemExit, match=said):
        there("train-diffusion", *TINY_DIFFUSION, *CPU, "run=x", *options)
    assert not Path("runs/x").exists()


def test_a_run_starts_from_anothers_network(there):
    there(
        "train-diffusion",
        *TINY_DIFFUSION,
        *CPU,
        "run=tuned",
        "init=runs/diffusion",
        "optimizer.lr=1e-30",
        "ema_decay=0",
    )
    for ours, theirs in zip(
        *(load_diffusion(f"runs/{r}").net.parameters() for r in ("tuned", "diffusion")), strict=True
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(SystemExit, match="another shape: choose the net= of"):
        there("train-diffusion", *TINY_DIFFUSION, *CPU, "run=x", "init=runs/diffusion", "net.num_res_blocks=2")


def test_likelihood_is_written_with_its_terms(there):
    there("likelihood", "num=8", "batch_size=4", "likelihood.probes=2", "likelihood.steps=4")
    found = json.loads(Path("runs/likelihood/likelihood.json").read_text())
    assert found["images"] == 8
    assert found["evaluations"] == 16
    assert sum(found["terms"].values()) == pytest.approx(found["image_bits_per_dim_at_most"], rel=1e-6)
    # hardly trained, the flow is nearly that of a standard normal distribution: log2(2 pi e) / 2 on unit variance
    assert found["latent_bits_per_dim"] == pytest.approx(2.05, abs=0.4)
    with pytest.raises(SystemExit, match="prepared as"):
        there("likelihood", "run=other", "data.resolution=16")


def test_noise_is_paired_in_the_loader_by_the_batchs_keys(pipeline):
    cache = LatentCache(str(pipeline / "runs/latents"), "size")
    noise = PairedNoise(OptimalTransport(), cache.stats, seed=3)
    data, keys = CachedMoments(cache, "train", noise), [(0, i) for i in range(40)]
    moments, labels, eps, _ = data.__getitems__(keys)
    assert torch.equal(eps, data.__getitems__(keys)[2])
    assert not torch.equal(eps, data.__getitems__([(1, i) for i in range(40)])[2])
    x0 = cache.stats.normalize(moments.float().chunk(2, dim=1)[0])
    torch.testing.assert_close(OptimalTransport()(x0, eps, labels), eps)  # the best pairs already
    assert abs(eps.std() - 1) < 0.05


def test_bins_are_means_by_tenths():
    bins = TimeBins()
    bins.add(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.31, 0.39, 1.0]))
    found = {key: float(value) for key, value in bins.take("val", torch.device("cpu")).items()}
    assert found == {"val_by_time/0.3": 2.0, "val_by_time/0.9": 5.0}
    assert bins.take("val", torch.device("cpu")) == {}
