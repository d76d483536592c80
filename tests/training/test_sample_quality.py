"""Stage 2 scores its samples at each validation as `ldm sample` and `ldm evaluate` score them afterwards."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import rows
from support.tiny import CPU, TINY_DIFFUSION, fails, inside

from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.generate.loading import load_model
from ldm.metrics.features import Pixels
from ldm.metrics.frechet import distance_of_images
from ldm.training.best import KeepBest
from ldm.training.sample_quality import shares

SCORED = ["features=pixels", "scored=20", "guidance=1.0"]


class Brightest(torch.nn.Module):
    """Logits of ten classes: the mean grey value in tenths."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        grey = image.float().mean(dim=(1, 2, 3)) / 256
        return -(grey[:, None] * 10 - torch.arange(10) - 0.5).abs()


@pytest.fixture
def judged(ldm, pipeline):
    """A run that scores itself, and keeps the best by its distance."""
    inside(pipeline, ldm)
    if not Path("runs/judged").exists():
        with pytest.warns(FutureWarning):  # for those who write such files
            torch.jit.save(torch.jit.script(Brightest()), "brightest.pt")
        words = [*SCORED, "classifier=brightest.pt", "keep_best=val/fd"]
        ldm("train-diffusion", "run=judged", *TINY_DIFFUSION, *CPU, *words)
    return Path("runs/judged")


def samples_of(run):
    model = load_model(run, device="cpu", weights="ema", autoencoder=None, trust=())
    return model, model.sample(n=20, sampler="euler", steps=1, guidance=1.0)


def test_the_distance_is_that_of_the_averaged_weights_samples(judged):
    model, images = samples_of(judged)
    latents = CachedMoments(LatentCache("runs/latents", "size"), "train")
    mean = latents.__getitems__([(0, i) for i in range(200)])[0].float().chunk(2, dim=1)[0]
    real = model.decode(model.stats.normalize(mean))
    expected = distance_of_images(Pixels(), [real], [images])
    logged = [float(row["val/fd"]) for row in rows(judged) if row.get("val/fd")]
    assert len(logged) == 2  # one a validation
    assert logged[-1] == pytest.approx(expected, rel=1e-4)


def test_the_accuracy_is_the_share_that_the_classifier_recognises(judged):
    _, images = samples_of(judged)
    grey = images.float().mean(dim=(1, 2, 3)) / 256
    right = ((grey * 10).long() == torch.arange(20) % 10).float().mean()
    assert float(rows(judged)[-1]["val/class_accuracy"]) == pytest.approx(float(right), abs=0.051)  # one of twenty


def test_what_the_figures_depend_on_stands_in_the_run(judged):
    stamp = json.loads((judged / "quality.json").read_text())
    assert stamp["features"] == "grey 8x8 pixels"
    assert stamp["reference"] == "200 training latents, decoded"
    assert stamp["samples"] == 20
    assert stamp["classifier"].startswith("brightest.pt, sha256")
    assert stamp["sampler"]["steps"] == 1


def test_the_best_by_it_is_kept_and_can_be_sampled(judged, ldm):
    note = json.loads((judged / "checkpoints/best.json").read_text())
    logged = {int(float(row["batches"])): float(row["val/fd"]) for row in rows(judged) if row.get("val/fd")}
    assert note["batches"] == min(logged, key=lambda batches: logged[batches])
    assert note["value"] == pytest.approx(min(logged.values()), rel=1e-5)
    ldm("sample", "run=of-best", f"model={judged}/checkpoints/best.ckpt", "num=2", "sampler.steps=1")


def test_training_is_the_same_with_and_without(judged, ldm):
    """Samples are drawn by noise of their own: no batch sees other times or noise for it."""
    ldm("train-diffusion", "run=plain", *TINY_DIFFUSION, *CPU)
    losses = [[row["train/loss"] for row in rows(run) if row.get("train/loss")] for run in (judged, "runs/plain")]
    assert losses[0] == losses[1]


def test_statistics_of_real_images_can_be_the_reference(judged, ldm):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((500, 64)) * 0.1
    np.savez("real.npz", mu=features.mean(0), sigma=np.cov(features.T))
    ldm("train-diffusion", "run=npz", *TINY_DIFFUSION, *CPU, *SCORED, "reference=real.npz")
    _, images = samples_of("runs/npz")
    ours = Pixels()(images).double()
    delta = ours.mean(0) - torch.from_numpy(features.mean(0))
    assert float(rows("runs/npz")[-1]["val/fd"]) > float(delta.square().sum())  # the rest is of the covariances


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reference=real.npz"], "reference=real.npz is no .npz of statistics (mu, sigma)"),
        (["features=nowhere.pt"], "features=nowhere.pt does not exist"),
        (["classifier=svc"], "classifier=svc is no file"),
        (["features=pixels", "scored=1"], "scored=1 must be at least 2"),
        (["features=pixels", "reference=few.npz"], "reference= has 3 features an image, features= 64"),
        (["reference=few.npz"], "reference= is of a Frechet distance: pass features=, too"),
        (["keep_best=val/fd", "every=2", "steps=2"], "keep_best=val/fd must be one of val/loss (features= adds val/fd"),
    ],
)
def test_mistakes(words, said, ldm, pipeline):
    inside(pipeline, ldm)
    Path("real.npz").unlink(missing_ok=True)
    np.savez("few.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert said in fails("train-diffusion", f"run=wrong-{len(words)}-{len(said)}", *TINY_DIFFUSION, *CPU, *words)


def test_the_best_is_the_highest_of_accuracies_and_the_lowest_of_distances(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for metric, values, wins in (("val/fd", [3.0, 1.0, 2.0], 2), ("val/class_accuracy", [0.1, 0.9, 0.5], 2)):
        for i, value in enumerate(values, start=1):
            (folder / f"{i:08d}.ckpt").write_text(f"{metric} {i}")
            KeepBest(metric).offer(tmp_path, value, i)
        assert (folder / "best.ckpt").read_text() == f"{metric} {wins}"
        assert json.loads((folder / "best.json").read_text())["batches"] == wins
    (folder / "00000002.ckpt").unlink()
    assert (folder / "best.ckpt").exists()
    KeepBest("val/class_accuracy").offer(tmp_path, float("nan"), 3)
    assert json.loads((folder / "best.json").read_text())["batches"] == 2


@pytest.mark.parametrize(("num", "world", "size"), [(10, 1, 4), (10, 3, 2), (2, 4, 8), (9, 2, 100)])
def test_ranks_share_the_samples_and_stay_in_step(num, world, size):
    of_ranks = [list(shares(num, rank, world, size)) for rank in range(world)]
    assert sorted(i for batches in of_ranks for batch in batches for i in batch if i < num) == list(range(num))
    assert len({tuple(map(len, batches)) for batches in of_ranks}) == 1
