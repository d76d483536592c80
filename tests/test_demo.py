"""The demonstration's promise, kept by every objective: digits in, digits out."""

import json
from pathlib import Path

import pytest
from support.runs import rows
from support.tiny import CPU, run_command


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with the default autoencoder and its latents."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("train-autoencoder", *CPU, draws=True)
        run_command("cache-latents")
    return folder


@pytest.fixture(scope="module")
def flow(digits):
    """The same folder, with the default diffusion model in runs/flow."""
    train(digits, "flow", 480)
    return digits


def train(folder, objective, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = [f"run={objective}", f"objective={objective}", f"steps={steps}", *CPU]
        run_command("train-diffusion", *options, draws=True)


def assert_samples_are_digits_of_their_class(objective):
    run_command("sample", f"run={objective}-samples", f"model=runs/{objective}", "sampler.steps=10")
    run_command("evaluate", f"run={objective}-metrics", f"samples=runs/{objective}-samples", "classifier=svc")
    metrics = json.loads(Path(f"runs/{objective}-metrics/metrics.json").read_text())
    figures = (
        metrics["class_accuracy"]["value"],
        metrics["frechet_distance"]["value"],
        metrics["reconstruction"]["psnr"],
    )
    print(f"{objective}: class accuracy %.4f, Frechet distance %.4f, PSNR %.2f dB" % figures)
    assert metrics["class_accuracy"]["classifier_on_held_out_images"] >= 0.97
    assert metrics["class_accuracy"]["value"] >= 0.90
    assert metrics["frechet_distance"]["value"] < 0.5  # uniform noise scores 7.3
    assert metrics["reconstruction"]["psnr"] >= 22


@pytest.mark.slow
def test_flow_draws_digits_of_their_class(flow, monkeypatch):
    monkeypatch.chdir(flow)
    assert_samples_are_digits_of_their_class("flow")


@pytest.mark.long
@pytest.mark.parametrize(("objective", "steps"), [("ddpm", 960), ("flow_vp", 480)])
def test_others_draw_digits_of_their_class(digits, objective, steps, monkeypatch):
    """Regressing the noise takes about twice the batches: after 480, 88 % of ddpm's samples get their label."""
    train(digits, objective, steps)
    monkeypatch.chdir(digits)
    assert_samples_are_digits_of_their_class(objective)


@pytest.mark.slow
def test_few_latents_are_learned_by_heart(flow, monkeypatch):
    """At noisy times, a network that knows the latents can tell which it is; one that has seen many has to guess."""
    monkeypatch.chdir(flow)
    run_command("train-diffusion", "debug=overfit", "optimizer.lr=2e-3", "sampler.steps=5", *CPU)
    errors = {}
    for run in ("flow", "overfit-train_diffusion"):
        last = rows(f"runs/{run}")[-1]
        errors[run] = sum(float(last[f"train_by_time/{t}"]) for t in (0.7, 0.8, 0.9)) / 3
    print("loss at t > 0.7, of all latents and of four:", *(f"{error:.3f}" for error in errors.values()))
    assert errors["overfit-train_diffusion"] < 0.6 * errors["flow"]
