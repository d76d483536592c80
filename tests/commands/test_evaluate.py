"""`ldm evaluate`: what it accepts on either side, what it keeps, its stamps, and several ranks."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.forms import ALONE, as_folder, as_npz, digits, metrics, stamp
from support.processes import ranks
from support.tiny import fails, inside

from ldm.checkpoint import load_diffusion
from ldm.evaluation.image_sets import SourceSet
from ldm.metrics.features import Pixels

PIXELS = [*ALONE, "features=pixels"]  # where both sides are files, auto is inception


def offline(*_, **__):
    raise OSError("no network")


ANY = torch.export.Dim("batch")


def test_samples_in_any_form_score_the_same(ldm, held_out):
    ldm("pack", "run=packed", "data.root=theirs", "data.val_fraction=0.1", "shard_size=100")
    found = []
    Path("tars").mkdir()
    for shard in Path("runs/packed").glob("*.tar"):  # other people's, without an index
        shard.rename(Path("tars", shard.name))
    shutil.copytree("tars", "runs/packed", dirs_exist_ok=True)
    for samples in ("theirs.npz", "theirs", "runs/packed", "tars"):
        ldm("evaluate", "overwrite=true", f"samples={samples}", *ALONE)
        found.append(metrics())
    names = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")
    for name in names:
        values = [one[name]["value"] for one in found]
        assert values == pytest.approx([values[0]] * 4, rel=1e-9), name
        assert found[0][name]["depends"]["samples"] == 297
    # against what the libraries say of the same features
    features = [Pixels()(images).double() for images in (digits()[0], held_out[0])]
    covariances = [torch.cov(x.T) for x in features]
    overlap = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    apart = (features[0].mean(0) - features[1].mean(0)).square().sum()
    expected = float(apart + covariances[0].trace() + covariances[1].trace() - 2 * overlap)
    assert found[0]["frechet_distance"]["value"] == pytest.approx(expected, rel=1e-6)
    assert found[0]["precision"]["value"] > 0.8
    assert found[0]["frechet_distance"]["expected_of_perfect_samples"] == pytest.approx(expected, rel=0.5)


def test_finished_samples_are_not_prepared_as_the_data_is(ldm, held_out):
    """Where data is enlarged to be cropped, samples in a folder stay what they are, as those in an .npz do."""
    as_folder(*digits(), "real")
    data = ["data=folder", "data.root=real", "data.val_root=theirs", "data.resolution=32", "data.resize=40"]
    ldm("pack", "run=packed", "data.root=theirs", "data.val_fraction=0.1", "shard_size=100")
    network = ["features=grey.pt2"]
    torch.export.save(torch.export.export(Pixels(), (held_out[0][:2],), dynamic_shapes=({0: ANY},)), "grey.pt2")
    found = []
    for samples in ("theirs.npz", "theirs", "runs/packed"):
        ldm("evaluate", "overwrite=true", f"samples={samples}", *data, *network, *ALONE)
        found.append(metrics()["frechet_distance"])
    assert found[1]["value"] == pytest.approx(found[0]["value"], rel=1e-9)
    assert [one["of"] for one in found] == [found[0]["of"]] * 3
    as_folder(held_out[0][..., :16], held_out[1], "half")
    line = fails("evaluate", "run=half", "samples=half", *data, *network, *ALONE)
    assert "samples=half has images of 16 x 32 pixels, data.resolution=32" in line


def test_any_set_or_statistics_can_be_the_reference(ldm, held_out):
    as_npz(*digits(), "real.npz")
    as_folder(*digits(), "real")
    values = []
    for reference in ("null", "real.npz", "real"):
        ldm("evaluate", "overwrite=true", "samples=theirs.npz", f"reference={reference}", *PIXELS)
        values.append(metrics()["frechet_distance"]["value"])
    features = Pixels()(digits()[0]).double().numpy()
    np.savez("statistics.npz", mu=features.mean(0), sigma=np.cov(features.T))
    ldm("evaluate", "overwrite=true", "samples=theirs.npz", "reference=statistics.npz", *PIXELS)
    values.append(metrics()["frechet_distance"]["value"])
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)
    assert "precision" not in metrics()  # which moments alone do not tell
    both = dict(np.load("statistics.npz")) | {"arr_0": np.load("real.npz")["arr_0"][:500]}  # as ADM's files
    np.savez("both.npz", **both)
    for _ in range(2):  # the second time from runs/statistics
        ldm("evaluate", "overwrite=true", "samples=theirs.npz", "reference=both.npz", *PIXELS)
        assert metrics()["frechet_distance"]["value"] == values[-1]
        assert metrics()["precision"]["depends"]["kept"] == [297, 500]
    np.savez("statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    line = fails("evaluate", "samples=theirs.npz", "reference=statistics.npz", *PIXELS)
    assert "of 3 features, this extractor has 64: pass the features= that they were made with" in line


def test_a_references_statistics_are_computed_once_and_again_when_it_changes(ldm, held_out, monkeypatch, capsys):
    as_folder(*digits(), "real")
    reads = []
    batches = SourceSet.batches
    monkeypatch.setattr(SourceSet, "batches", lambda self, *a: reads.append(self.splits) or batches(self, *a))
    for _ in range(2):
        ldm("evaluate", "overwrite=true", "samples=theirs.npz", "reference=real", *PIXELS)
    assert len(reads) == 1
    first = metrics()["frechet_distance"]
    Path("real/0").joinpath(next(Path("real/0").iterdir()).name).unlink()
    ldm("evaluate", "overwrite=true", "samples=theirs.npz", "reference=real", *PIXELS)
    assert len(reads) == 2
    assert metrics()["frechet_distance"]["depends"]["reference"]["images"] == 1499
    assert metrics()["frechet_distance"]["value"] != first["value"]
    assert len(list(Path("runs/statistics").glob("*.npz"))) == 2
    assert "297 samples against 1499 images, fewer than 10000: perfect samples would score" in capsys.readouterr().out
    changed = next(Path("real/1").iterdir())
    changed.write_bytes(next(Path("real/2").iterdir()).read_bytes())  # under its old name
    ldm("evaluate", "overwrite=true", "samples=theirs.npz", "reference=real", *PIXELS)
    assert len(reads) == 3
    pixels = [json.loads(str(np.load(file)["card"]))["pixels"] for file in Path("runs/statistics").glob("*.npz")]
    assert len(set(pixels)) == 3
    kept = next(Path("runs/statistics").glob("*.npz"))
    ldm("evaluate", "overwrite=true", "samples=theirs.npz", f"reference={kept}", *PIXELS)  # and may be passed on
    assert "coverage" in metrics()
    theirs = dict(np.load(kept))
    np.savez("other.npz", **theirs | {"card": json.dumps(json.loads(str(theirs["card"])) | {"extractor": "another"})})
    line = fails("evaluate", "samples=theirs.npz", "reference=other.npz", *PIXELS)
    assert "the reference's statistics are of another, the samples' of grey 8x8 pixels" in line
    Path("torn.npz").write_bytes(Path("other.npz").read_bytes()[:1000])
    assert "torn.npz is damaged" in fails("evaluate", "samples=theirs.npz", "reference=torn.npz", *PIXELS)


def test_a_file_classifies_and_copies_are_found(ldm, held_out):
    images, labels = digits()
    weights = torch.linalg.lstsq(Pixels()(images), torch.nn.functional.one_hot(labels).float()).solution

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.Parameter(weights, requires_grad=False)

        def forward(self, image: torch.Tensor, return_features: bool = True) -> torch.Tensor:
            grey = image.float().mean(dim=1, keepdim=True) / 255
            features = torch.nn.functional.adaptive_avg_pool2d(grey, 8).flatten(1)
            return features if return_features else features @ self.weights

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's end
        torch.jit.save(torch.jit.script(Linear()), "linear.pt")
    copies = as_npz(images[:100], labels[:100], "copies.npz")
    for samples in ("theirs.npz", copies):
        run = Path(samples).stem
        options = ["features=linear.pt", "classifier=linear.pt", "memorisation=100"]
        ldm("evaluate", "overwrite=true", f"run={run}", f"samples={samples}", *options, *ALONE)
        with Image.open(f"runs/{run}/neighbours.png") as picture:
            assert min(picture.size) > 200
    right = float((Pixels()(held_out[0]) @ weights).argmax(1).eq(held_out[1]).double().mean())
    accuracy = metrics("theirs")["class_accuracy"]
    assert accuracy["value"] == accuracy["classifier_on_held_out_images"] == pytest.approx(right)
    assert 0.8 < right < 1
    # the very images held out
    assert metrics("theirs")["memorisation"]["chance_of_being_nearer"] == pytest.approx(0.5, abs=1e-9)
    assert metrics("theirs")["memorisation"]["value"] < 0.03
    assert metrics("copies")["memorisation"]["value"] > 0.99
    assert metrics("copies")["memorisation"]["median_distance"] == 0
    as_folder(images, labels, "real")
    as_npz(images[:100].flip(-1), labels[:100], "mirrors.npz")
    for flip in (True, False):
        data = ["data=folder", "data.root=real", "data.val_root=theirs", "data.resolution=32", f"data.flip={flip}"]
        ldm(
            "evaluate",
            "overwrite=true",
            f"run={flip}",
            "samples=mirrors.npz",
            "features=linear.pt",
            "memorisation=100",
            *data,
            *ALONE,
        )
    assert metrics("True")["memorisation"]["median_distance"] == 0
    assert metrics("False")["memorisation"]["median_distance"] > 0.1


def test_samples_name_the_model_whose_likelihood_is_bounded(ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "run=few", "num=10", "sampler.steps=2")
    ldm(
        "evaluate",
        "overwrite=true",
        "run=bits",
        "samples=runs/few",
        "likelihood=8",
        "reconstruction=false",
        "batch_size=8",
    )
    found = metrics("bits")["bits_per_dim"]
    assert found["terms"]["model"] == load_diffusion("runs/diffusion").fingerprint
    ldm("likelihood", "run=likelihood8", "num=8", "batch_size=8")
    alone = json.loads(Path("runs/likelihood8/likelihood.json").read_text())
    assert found["value"] == pytest.approx(alone["image_bits_per_dim_at_most"], rel=1e-6)
    assert found["depends"]["likelihood"] == alone["likelihood"]
    assert alone["likelihood"]["rtol"] == 1e-4
    stamped = metrics("bits")["samples"]
    assert stamped.keys() >= {"model", "autoencoder", "sampler", "grid", "evaluations", "guidance", "seed", "precision"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["samples=nothing"], "samples=nothing holds no samples.npz"),
        (
            [
                "samples=theirs.npz",
                "classifier=svc",
                "features=null",
                "data=folder",
                "data.root=theirs",
                "data.resolution=32",
            ],
            "for the digits only",
        ),
        (["samples=theirs.npz", "memorisation=5", "features=null"], "pass features="),
        (["samples=theirs.npz", "reference=theirs", "features=null"], "compares with no reference"),
        (["samples=flat", "classifier=svc"], "samples=flat has the classes"),
        (["samples=stamped", "features=null", "classifier=svc"], "was trained on the classes ['cat', 'dog']"),
        (["samples=torn"], "is not the one that sample.json beside it describes"),
        (["samples=theirs.npz", "likelihood=5"], "a run of `ldm sample`"),
        (["samples=null", "memorisation=5"], "memorisation needs samples"),
        (["samples=theirs.npz", "features=pixels", "inception_splits=adm"], "adm wants features=inception"),
        (["samples=theirs.npz", "keep=0"], "keep=0 must be"),
        (["samples=theirs.npz", "keep=4"], "keep=4 must be more than neighbours="),
        (["samples=theirs.npz", "reference=theirs"], "features=inception needs"),  # not the digits' pixels
        (["samples=empty.npz"], "empty.npz: arr_0 must be uint8 [N, H, W, 3], not uint8 [0, 32, 32, 3]"),
        (["samples=wide.npz"], "samples=wide.npz has images of 64 x 32 pixels, data.resolution=32"),
        (["samples=labels.npz", "classifier=svc"], "has the labels 5 ... 14, data has 10 classes"),
        (["samples=bits.npz"], "bits.npz is damaged"),
        (["samples=theirs.npz", "reference=spatial.npz", "features=pixels"], "mu_s and sigma_s without mu and sigma"),
        (["samples=theirs.npz", "reference=sizes.npz", "features=pixels"], "mu has [3] numbers, sigma [4, 4]"),
        (["samples=theirs.npz", "reference=none"], "reference=none holds no images"),
        (["samples=theirs.npz", "reference=splits"], "not classes: pass reference=splits/train"),
        (["samples=cropped", "memorisation=5"], "data.resize=48 (now 32): memorisation needs the same ones"),
    ],
)
def test_what_cannot_be_scored_is_refused(ldm, held_out, monkeypatch, overrides, said):
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    as_npz(held_out[0][:0], held_out[1][:0], "empty.npz")
    as_npz(held_out[0].repeat(1, 1, 1, 2), held_out[1], "wide.npz")
    as_npz(held_out[0], held_out[1] + 5, "labels.npz")
    bits = bytearray(Path("theirs.npz").read_bytes())
    bits[5000] ^= 1
    Path("bits.npz").write_bytes(bits)
    np.savez("spatial.npz", mu_s=np.zeros(3), sigma_s=np.eye(3))
    np.savez("sizes.npz", mu=np.zeros(3), sigma=np.eye(4))
    as_folder(held_out[0][:9], torch.zeros(9), "flat")
    as_folder(held_out[0][:9], torch.zeros(9), "splits/train")
    Path("none").mkdir()
    stamps = {"stamped": {"class_names": ["cat", "dog"]}, "torn": {"sha256": "0" * 16}}
    stamps["cropped"] = {"preprocessing": {"resolution": 32, "resize": 48}}
    for name, changes in stamps.items():
        Path(name).mkdir()
        shutil.copy("theirs.npz", f"{name}/samples.npz")
        Path(name, "sample.json").write_text(json.dumps(stamp("theirs.npz", **changes)))
    assert said in fails("evaluate", *ALONE, *overrides)
    assert not Path("runs/metrics").exists()


@pytest.mark.slow
def test_ranks_score_as_one_process_does(ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "run=shared", "num=100", "sampler.steps=2")
    options = ["samples=runs/shared", "classifier=svc", "memorisation=20", "statistics=null", "batch_size=64"]
    ldm("evaluate", *options, "run=alone")
    ranks("evaluate", *options, "run=together")
    alone, together = metrics("alone"), metrics("together")
    assert alone.keys() == together.keys()
    for name, score in alone.items():
        if "value" in score:
            assert score["value"] == pytest.approx(together[name]["value"], rel=1e-6, abs=1e-9), name
            assert score["depends"] == together[name]["depends"], name
    for name in ("psnr", "ssim", "lpips", "rfd", "images"):
        assert alone["reconstruction"][name] == pytest.approx(together["reconstruction"][name], rel=1e-5), name
    as_folder(*digits("val"), "real")  # and where the only held-out image leaves a rank without any
    data = ["data=folder", "data.root=real", "data.resolution=32", "data.val_fraction=0.003", "features=null"]
    options = ["samples=null", "autoencoder=runs/autoencoder", *data]
    ldm("evaluate", *options, "run=one-image-alone")
    ranks("evaluate", *options, "run=one-image-together")
    alone, together = metrics("one-image-alone")["reconstruction"], metrics("one-image-together")["reconstruction"]
    assert alone["images"] == together["images"] == 1
    for name in ("psnr", "ssim", "lpips"):
        assert alone[name] == pytest.approx(together[name], rel=1e-5), name
