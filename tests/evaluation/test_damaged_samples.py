"""Samples and results in files, damaged or wrong: one line that names the file and the key."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.forms import stamp

from ldm.evaluation.comparison import read
from ldm.evaluation.image_sets import ArraySet
from ldm.evaluation.result_files import MetricsFile, check_scores
from ldm.evaluation.sample_scores import FeatureScores, Reader
from ldm.metrics.collect import sampling
from ldm.metrics.features import Extractor
from ldm.metrics.statistics import Statistics

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def refused(path):
    with pytest.raises(ValueError) as info:
        ArraySet.load(path)
    line = str(info.value)
    assert str(path.parent) in line
    assert "\n" not in line
    return line


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES.astype(np.float32), None, "arr_0 must be uint8 [N, H, W, 3], not float32 [5, 4, 4, 3]"),
        (IMAGES.astype(">u2"), None, "arr_0 must be uint8 [N, H, W, 3], not "),
        (IMAGES.astype(np.int8), None, "not int8 [5, 4, 4, 3]"),
        (IMAGES > 3, None, "not bool [5, 4, 4, 3]"),
        (IMAGES[0], None, "not uint8 [4, 4, 3]"),
        (IMAGES.transpose(0, 3, 1, 2), None, "not uint8 [5, 3, 4, 4]"),
        (IMAGES[..., :1], None, "not uint8 [5, 4, 4, 1]"),
        (IMAGES[:0], None, "not uint8 [0, 4, 4, 3]"),
        (np.array(3), None, "not int64 []"),
        (np.array([None] * 5), None, "in arr_0: it holds Python objects"),
        (np.array(["a"]), None, "not <U1 [1]"),
        (IMAGES, np.zeros((5, 1), int), "arr_1 must hold 5 whole numbers, not int64 [5, 1]"),
        (IMAGES, np.zeros(5, bool), "arr_1 must hold 5 whole numbers, not bool [5]"),
        (IMAGES, np.array(3), "arr_1 must hold 5 whole numbers, not int64 []"),
        (IMAGES, np.full(5, np.nan), "arr_1 must hold 5 whole numbers, not float64 [5]"),
        (IMAGES, np.full(5, 2**64 - 1, np.uint64), "arr_1 holds 18446744073709551615, which is no label"),
    ],
)
def test_wrong_arrays(tmp_path, save, images, labels, said):
    save(tmp_path / "a.npz", arr_0=images, **({} if labels is None else {"arr_1": labels}))
    assert said in refused(tmp_path / "a.npz")


def test_an_npz_without_images(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    assert "holds no arr_0" in refused(tmp_path / "a.npz")


def test_no_cut_passes(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=IMAGES, arr_1=np.arange(5))
    whole = (tmp_path / "a.npz").read_bytes()
    for i in range(0, len(whole), 7):
        (tmp_path / "a.npz").write_bytes(whole[:i])
        refused(tmp_path / "a.npz")


def test_an_array_that_says_it_is_larger_than_its_file(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=IMAGES)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        content = archive.read("arr_0.npy").replace(b"(5, 4, 4, 3)", b"(9, 4, 4, 3)")
    for compress in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", compress) as archive:
            archive.writestr("arr_0.npy", content)
        assert "says uint8 [9, 4, 4, 3], 432 bytes, and it has 240" in refused(tmp_path / "a.npz")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """100 MB of zeros take 100 kB, and none of this machine's memory."""
    np.savez_compressed(tmp_path / "a.npz", arr_0=np.zeros((100, 577, 577, 3), np.uint8))
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10_000}[name])
    assert "decompressed, takes 0.1 GiB at least, there are 0.0 here: write it with numpy.savez" in refused(
        tmp_path / "a.npz"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": 16 * "0"}, "is not the one that sample.json beside it describes"),
        ({"sha256": "short"}, "sha256 is short, not 16 hexadecimal digits"),
        ({"class_names": "cat"}, "class_names is cat, not a list"),
        ({"class_names": [1]}, "class_names[0] is 1, not text"),
        ({"preprocessing": 3}, "preprocessing is 3, not a group of keys"),
        ({"autoencoder": None}, "autoencoder is null, not text"),
        ({"num": 0}, "num is 0, not at least 1"),
        ({"weights": "old"}, "weights is old, not ema or raw"),
        ({"guidance": -1}, "guidance is -1, not at least 0"),
        ({"seed": 1.5}, "seed is 1.5, not a whole number"),
        ({"more": 1}, "more is no key of this format"),
    ],
)
def test_stamps(tmp_path, changes, said):
    np.savez(tmp_path / "samples.npz", arr_0=IMAGES)
    (tmp_path / "sample.json").write_text(json.dumps(stamp(tmp_path / "samples.npz") | changes))
    assert said in refused(tmp_path / "samples.npz")


def test_no_flipped_byte_of_a_stamp_is_a_trace(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=IMAGES)
    whole = json.dumps(stamp(tmp_path / "samples.npz")).encode()
    for i in range(0, len(whole), 7):
        (tmp_path / "sample.json").write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        try:
            ArraySet.load(tmp_path / "samples.npz")
        except ValueError as error:
            assert str(tmp_path) in str(error)
            assert "\n" not in str(error)


class Mean(Extractor):
    identity, resize, num_features = "mean", "none", 3

    def forward(self, image):
        return image.double().mean((2, 3))


@pytest.fixture
def score(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("samples", 31), ("real", 40)):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8))
    return FeatureScores(
        samples=ArraySet.load(tmp_path / "samples.npz"), reference=ArraySet.load(tmp_path / "real.npz"), known={},
        extractor=Mean(), folder=tmp_path / "kept", keep=20, neighbours={"precision_recall": 3, "density_coverage": 5},
        precision="float32", seed=0,
    )  # fmt: skip


def scored(score):
    read_all = Reader(device=torch.device("cpu"), batch_size=16, num_workers=0, rank=0, world=1)
    return score.compute([score.look(read_all)])


def negative(path):
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **content | {"sigma": -content["sigma"]})


def of_another(path):
    statistics = Statistics.load(path)
    replace(statistics, card=statistics.card | {"extractor": "another"}).save(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is damaged: "),
        (lambda path: path.write_bytes(b""), "is damaged: "),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"mu.npy", b"nu.npy")), "holds no mu"),
        (negative, "sigma has a negative eigenvalue, so it is no covariance"),
        (of_another, "is not what is kept there"),
    ],
)
def test_kept_statistics_that_are_damaged_are_computed_again(score, damage, said, caplog):
    whole = scored(score)
    (file,) = score.folder.iterdir()
    before = file.read_bytes()
    damage(file)
    assert scored(score) == whole
    assert file.read_bytes() == before  # mended
    (record,) = caplog.records
    assert said in record.getMessage()
    assert str(file) in record.getMessage()
    assert record.getMessage().endswith(": the reference's statistics are computed again")
    assert scored(score) == whole
    assert len(caplog.records) == 1


def test_labels_far_apart_are_counted_without_memory():
    assert sampling({5: 2, 2**61: 2}) == f"equally many of the classes [5, {2**61}]"
    assert sampling({0: 2, 1: 9}) == "not equally many of the classes 0 ... 1"
    assert sampling({-1: 2, 0: 2}) == "equally many of the classes [-1, 0]"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            {"frechet_distance": {"value": float("nan")}},
            "frechet_distance.value is nan, so metrics.json is not",
        ),
        ({"reconstruction": {"psnr": float("inf"), "images": 3}}, "reconstruction.psnr is inf, so"),
        ({"x": {"value": 1.0, "parts": [1.0, float("-inf")]}}, "x.parts is -inf, so"),
        ({"x": {"value": torch.zeros(())}}, "x.value is a Tensor, so metrics.json is not written: a score is of plain"),
        ({"x": {"value": np.float64(3)}}, "x.value is a float64, so metrics.json is not written: a score is of plain"),
    ],
)
def test_scores_that_are_not_finite_are_not_written(scores, said):
    with pytest.raises(ValueError) as info:
        check_scores(scores, "metrics.json")
    assert str(info.value).startswith(said)
    assert "\n" not in str(info.value)
    with pytest.raises(ValueError):  # nor does the format let them pass
        MetricsFile(samples={}, versions={}, **scores)
    check_scores({"x": {"value": 1.0, "std": None, "depends": {"kept": [1, 2], "card": {"a": "b"}}}}, "metrics.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged, not JSON"),
        ("[]", "it is [], not a group of keys"),
        ("{}", "samples is missing"),
        ('{"samples": {}, "versions": {"torch": 2}}', "versions.torch is 2, not text"),
        ('{"samples": {}, "versions": {}, "x": 3}', "x is 3, not a group of keys"),
        ('{"samples": {}, "versions": {}, "x": {"value": "3"}}', "x.value is 3, not a number"),
        ('{"samples": {}, "versions": {}, "x": {"value": true}}', "x.value is true, not a number"),
        ('{"samples": {}, "versions": {}, "x": {"value": NaN}}', "NaN is no number of JSON"),
        ('{"samples": {}, "versions": {}, "x": {"value": 3, "depends": []}}', "x.depends is [], not a group of keys"),
        ('{"samples": {}, "versions": {}, "reconstruction": {"psnr": "3"}}', "reconstruction.psnr is 3, not a number"),
        ('{"samples": {}, "versions": {}, "frechet_distance": {"value": 3, "of": 3}}', "frechet_distance.of is 3, not"),
    ],
)
def test_files_that_can_not_be_compared(tmp_path, content, said):
    whole, damaged = tmp_path / "a.json", tmp_path / "b.json"
    MetricsFile(samples={}, versions={}, x={"value": 1.0}).write(whole)
    damaged.write_text(content)
    for pair in ([str(whole), str(damaged)], [str(damaged), str(whole)]):
        with pytest.raises(ValueError) as info:
            read(pair)
        assert str(info.value).startswith(f"{damaged} is no metrics.json of this `ldm evaluate`: ")
        assert said in str(info.value)
        assert "\n" not in str(info.value)
