"""`ldm evaluate` of what is damaged, wrong or too little: one line, and nothing is left behind."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.forms import ALONE, as_npz, digits, metrics
from support.tiny import fails

PIXELS = [*ALONE, "features=pixels"]


@pytest.fixture
def some(ldm):
    """A few digits as samples, and what is wrong with others."""
    images, labels = digits("val")
    as_npz(images[:20], labels[:20], "some.npz")
    as_npz(images[:1], labels[:1], "one.npz")
    as_npz(images[:2], labels[:2], "two.npz")
    as_npz(images[:1].expand(20, -1, -1, -1), labels[:20], "alike.npz")
    np.savez("float.npz", arr_0=np.zeros((20, 32, 32, 3)))
    np.savez("statistics.npz", mu=np.full(64, np.nan), sigma=np.eye(64))
    np.savez("negative.npz", mu=np.zeros(64), sigma=-np.eye(64))
    np.save("statistics.npy", np.zeros(64))
    Path("text.npz").write_text("no zip")
    Path("folder.npz").mkdir()
    Path("text.pt").write_text("no network")
    Path("zero.npz").symlink_to("/dev/zero")
    os.mkfifo("fifo.npz")
    return ldm


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["samples=one.npz"], "samples=one.npz has one image, and a Frechet distance needs two a side"),
        (["samples=some.npz", "reference=one.npz"], "reference=one.npz has one image"),
        (["samples=float.npz"], "float.npz: arr_0 must be uint8 [N, H, W, 3], not float64 [20, 32, 32, 3]"),
        (["samples=text.npz"], "text.npz is damaged: File is not a zip file"),
        (["samples=zero.npz"], "zero.npz is no regular file"),
        (["samples=fifo.npz"], "fifo.npz is no regular file"),
        (["samples=folder.npz"], "folder.npz"),
        (["samples=text.pt"], "text.pt"),
        (["samples=some.npz", "reference=fifo.npz"], "fifo.npz is no regular file"),
        (["samples=some.npz", "reference=folder.npz"], "folder.npz is no regular file"),
        (["samples=some.npz", "reference=statistics.npz"], "statistics.npz: mu holds values that are not finite"),
        (["samples=some.npz", "reference=negative.npz"], "negative.npz: sigma has a negative eigenvalue"),
        (["samples=some.npz", "reference=statistics.npy"], "statistics.npy"),
        (["samples=some.npz", "reference=text.pt"], "text.pt"),
        (["samples=some.npz", "features=text.pt"], "features=text.pt can't be used on"),
        (["samples=some.npz", "classifier=text.pt"], "classifier=text.pt can't be used on"),
        (["samples=some.npz", "classifier=fifo.npz"], "classifier=fifo.npz is no regular file"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_refused(some, words, said):
    assert said in fails("evaluate", *PIXELS, *words)
    assert not Path("runs/metrics").exists()


@pytest.mark.parametrize("samples", ["two.npz", "alike.npz"])
def test_few_images_have_the_scores_that_they_tell(some, samples):
    """Fewer than neighbours, than features, than subsets: what can't be computed is left out, the rest is finite."""
    some("evaluate", f"samples={samples}", *PIXELS)
    scores = metrics()
    assert scores["frechet_distance"]["value"] > 0
    assert ("precision" in scores) == (samples == "alike.npz")


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_score_that_is_not_finite_is_not_written(some, monkeypatch, value, told):
    monkeypatch.setattr("ldm.evaluation.sample_scores.frechet_distance", lambda *_: value)
    line = fails("evaluate", "samples=some.npz", *PIXELS)
    assert f"frechet_distance.value is {told}, so metrics.json is not written: what it was computed of" in line
    assert not Path("runs/metrics").exists()


def test_features_of_some_images_that_are_not_finite(some, monkeypatch):
    from ldm.metrics.features import Pixels

    def forward(self, image):
        return image.float().flatten(1)[:, :64] / image.amax((1, 2, 3), keepdim=True).flatten(1).sub(255).float()

    monkeypatch.setattr(Pixels, "forward", forward)
    assert "the features of some images are not finite" in fails("evaluate", "samples=some.npz", *PIXELS)
    assert not Path("runs/metrics").exists()


def test_kept_statistics_that_are_damaged_do_not_stop_later_evaluations(some):
    some("evaluate", "samples=some.npz", *PIXELS)
    whole = metrics()
    (kept,) = Path("runs/statistics").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    some("evaluate", "samples=some.npz", *PIXELS)
    assert metrics() == whole
    assert "the reference's statistics are computed again" in Path("runs/metrics/log.txt").read_text()
    assert len(list(Path("runs/statistics").iterdir())) == 1


def test_exact_reconstructions_have_a_finite_psnr():
    """Of N values, one that is off by one has 10 log10(255^2 N) dB; no finite value is changed."""
    from ldm.metrics.reconstruction import ReconstructionMetrics

    image = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
    one_off = image.clone()
    one_off[:, 0, 0, 0] += 1
    values = []
    for image_hat in (image, one_off):
        scores = ReconstructionMetrics(None, None)
        scores.update(image_hat, image)
        values.append(scores.compute()["psnr"])
    assert values == pytest.approx([10 * np.log10(255**2 * 768)] * 2, rel=1e-6)
