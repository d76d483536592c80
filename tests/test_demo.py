"""The demonstration's promise, kept by every objective: digits in, digits out."""

import json
from pathlib import Path

import pytest
from support.runs import rows
from support.tiny import CPU, run_command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with the default autoencoder and its latents."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("train-autoencoder", *CPU, draws=True)
        run_command("cache-latents")
    return folder


@pytest.mark.parametrize(("objective", "steps"), [("flow", 480), ("ddpm", 960), ("flow_vp", 480)])
def test_samples_are_digits_of_their_class(digits, objective, steps, monkeypatch):
    """Regressing the noise takes about twice the batches: after 480, 88 % of ddpm's samples get their label."""
    monkeypatch.chdir(digits)
    run_command("train-diffusion", f"run={objective}", f"objective={objective}", f"steps={steps}", *CPU, draws=True)
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


def test_one_batch_of_latents_is_learned_by_heart(digits, monkeypatch):
    monkeypatch.chdir(digits)
    run_command("train-diffusion", "debug=overfit", "sampler.steps=5", *CPU)
    log = rows("runs/overfit-train_diffusion")
    first, last = (sum(float(row["train/loss"]) for row in part) / len(part) for part in (log[:2], log[-5:]))
    print(f"overfit: loss {first:.3f}, then {last:.3f}")
    assert last < 0.35 * first
