"""Statistics in files, damaged or of nothing: one line that names the file and the array, or no effect at all."""

import json
import zipfile

import numpy as np
import pytest
import torch

from ldm.metrics.array_files import ArrayFile
from ldm.metrics.statistics import Moments, Statistics, known_statistics

ROWS = np.random.default_rng(0).normal(size=(9, 4))
WHOLE = {
    "mu": ROWS.mean(0),
    "sigma": np.cov(ROWS.T),
    "count": np.array(9),
    "features": ROWS.astype(np.float32),
    "card": np.array(json.dumps({"extractor": "x"})),
}


def written(path, **changes):
    np.savez(path, **{name: value for name, value in (WHOLE | changes).items() if value is not None})
    return path


def refused(path):
    with pytest.raises(ValueError) as info:
        known_statistics(path)
    line = str(info.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def same(a, b):
    tensors = ((getattr(a, name), getattr(b, name)) for name in ("mean", "covariance", "features"))
    return (a.count, a.card) == (b.count, b.card) and all(torch.equal(*pair) for pair in tensors)


def test_no_flipped_byte_and_no_cut_passes(tmp_path):
    whole = written(tmp_path / "a.npz").read_bytes()
    first, damaged = Statistics.load(tmp_path / "a.npz"), tmp_path / "b.npz"
    for i in range(0, len(whole), 7):
        damaged.write_bytes(whole[:i])
        refused(damaged)
        damaged.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        try:
            kinds = known_statistics(damaged)
        except ValueError as error:
            assert str(damaged) in str(error)
            assert "\n" not in str(error)
        else:  # of what zip itself does not check: times, versions
            assert same(kinds["features"], first), i


HALF_SIGMA = np.tril(np.cov(ROWS.T))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mu": np.full(4, np.nan)}, "mu holds values that are not finite"),
        ({"mu": np.full(4, np.inf)}, "mu holds values that are not finite"),
        ({"sigma": np.full((4, 4), np.nan)}, "sigma holds values that are not finite"),
        ({"sigma": HALF_SIGMA}, "sigma is not symmetric, so it is no covariance"),
        ({"sigma": -np.eye(4)}, "sigma has a negative eigenvalue, so it is no covariance"),
        ({"sigma": np.diag([1.0, 1, 1, -0.1])}, "sigma has a negative eigenvalue"),
        ({"sigma": np.ones((4, 4)) - 0.5 * np.eye(4)}, "sigma has a negative eigenvalue"),
        ({"sigma": np.eye(5)}, "mu has [4] numbers, sigma [5, 5]"),
        ({"sigma": np.eye(4)[None]}, "mu has [4] numbers, sigma [1, 4, 4]"),
        ({"sigma": np.ones(4)}, "mu has [4] numbers, sigma [4]"),
        ({"mu": np.zeros((1, 4))}, "mu has [1, 4] numbers, sigma [4, 4]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mu has [0] numbers"),
        ({"mu": np.array(1.0), "sigma": np.array(1.0)}, "mu has [] numbers"),
        ({"mu": np.array(["a"] * 4)}, "mu is of <U1, not of numbers"),
        ({"mu": np.ones(4, bool)}, "mu is of bool, not of numbers"),
        ({"mu": np.ones(4, complex)}, "mu is of complex128, not of numbers"),
        ({"mu": np.array([None] * 4)}, "in mu: it holds Python objects"),
        ({"mu": np.zeros(4, [("a", "f8")])}, "not of numbers"),
        ({"count": np.array(1)}, "count is 1, not a whole number of at least 2"),
        ({"count": np.array(-9)}, "count is -9, not a whole number"),
        ({"count": np.array(9.5)}, "count is 9.5, not a whole number"),
        ({"count": np.array(np.nan)}, "count is nan, not a whole number"),
        ({"count": np.array([9, 9])}, "count is an array of [2], not a whole number"),
        ({"count": np.array("nine")}, "count is nine, not a whole number"),
        ({"features": np.zeros((9, 5), np.float32)}, "features is [9, 5], of 9 images with 4 features each"),
        ({"features": np.zeros((10, 4), np.float32)}, "features is [10, 4], of 9 images"),
        ({"features": np.zeros((0, 4), np.float32)}, "features is [0, 4], of 9 images"),
        ({"features": np.zeros(4, np.float32)}, "features is [4], of 9 images"),
        ({"features": np.full((9, 4), np.nan, np.float32)}, "features holds values that are not finite"),
        ({"card": np.array("{")}, "card is no JSON text of plain data"),
        ({"card": np.array("[" * 9999)}, "card is no JSON text of plain data"),
        ({"card": np.array("[]")}, "card is no JSON text of plain data"),
        ({"card": np.array('{"a": NaN}')}, "card is no JSON text of plain data"),
        ({"card": np.array(3)}, "card is no JSON text of plain data"),
        ({"card": np.array(["{}"])}, "card is no JSON text of plain data"),
        ({"mu": None, "sigma": None, "mu_s": np.zeros(4), "sigma_s": np.eye(4)}, "mu_s and sigma_s without mu"),
        ({"mu_s": np.zeros(4), "sigma_s": -np.eye(4)}, "sigma_s has a negative eigenvalue"),
        ({"mu_s": np.zeros(4), "sigma_s": np.eye(3)}, "mu_s has [4] numbers, sigma_s [3, 3]"),
    ],
)
def test_what_are_no_statistics(tmp_path, changes, said):
    assert said in refused(written(tmp_path / "a.npz", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"mu": WHOLE["mu"].astype(np.float32), "sigma": WHOLE["sigma"].astype(np.float32)},  # asymmetric by rounding
        {"mu": WHOLE["mu"].astype(">f8"), "sigma": np.asfortranarray(WHOLE["sigma"])},
        {"sigma": np.cov(ROWS[:3].T)},  # singular
        {"sigma": np.zeros((4, 4))},  # of images that are all the same
        {"sigma": 1e-30 * np.eye(4)},
        {"features": None, "count": None, "card": None},  # pytorch-fid's
        {"mu_s": np.zeros(6), "sigma_s": np.eye(6), "arr_0": np.zeros((3, 2, 2, 3), np.uint8)},  # ADM's
    ],
)
def test_what_others_write_is_read(tmp_path, changes):
    statistics = known_statistics(written(tmp_path / "a.npz", **changes))
    expected = (WHOLE | changes)["mu"].astype(np.float64), (WHOLE | changes)["sigma"].astype(np.float64)
    assert torch.equal(statistics["features"].mean, torch.from_numpy(expected[0]))
    assert torch.equal(statistics["features"].covariance, torch.from_numpy(np.ascontiguousarray(expected[1])))
    assert ("spatial" in statistics) == ("mu_s" in changes)


def test_single_precision_is_no_asymmetry(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2000, 300)) * np.logspace(0, -4, 300)
    sigma = (rows.T @ rows / 1999).astype(np.float32)
    sigma += np.float32(3e-7) * np.random.default_rng(1).normal(size=sigma.shape).astype(np.float32)
    known_statistics(written(tmp_path / "a.npz", mu=np.zeros(300), sigma=sigma, features=None))


def with_header(path, header, data=b"\0" * 32, version=(1, 0), compress=zipfile.ZIP_STORED):
    """mu with any header."""
    written(path)
    text = header.encode() + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    with zipfile.ZipFile(path) as archive:
        rest = {name: archive.read(name) for name in archive.namelist() if name != "mu.npy"}
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("mu.npy", b"\x93NUMPY" + bytes(version) + length + text + data)
        for name, content in rest.items():
            archive.writestr(name, content)
    return path


def header(shape="(4,)", descr="'<f8'", fortran="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (header("(5,)"), "its header says float64 [5], 40 bytes, and it has 32"),  # larger than its file
        (header("(100000000000000,)"), "800000000000000 bytes, and it has 32"),
        (header("(3,)"), "24 bytes, and it has 32"),
        (header("(-4,)"), "its header says float64 [-4]"),
        (header("(-2, -2)"), "its header says float64 [-2, -2]"),
        (header("(True, 4)"), "its header says float64 [True, 4]"),
        (header("(4.0,)"), "in mu: "),
        (header("4"), "in mu: "),
        (header("(4"), "in mu: "),
        (header(descr="'|O'"), "it holds Python objects"),
        (header(descr="'V0'"), "its header says"),
        (header(descr="'<f9'"), "in mu: "),
        (header(descr="'nonsense'"), "in mu: "),
        (header(descr="[('a', '|O'), ('b', '<f8')]"), "it holds Python objects"),
        (header(fortran="3"), "in mu: "),
        ("{}", "in mu: "),
        ("__import__('os').mkdir('pwned')", "in mu: "),
        ("(" * 5000, "in mu: "),
        ("{'a': 1" + " " * 20_000, "in mu: "),
        ("", "in mu: "),
        ("\xff\xfe", "in mu: "),
    ],
)
def test_headers_of_arrays(tmp_path, text, said, compress):
    assert said in refused(with_header(tmp_path / "a.npz", text, compress=compress))


@pytest.mark.parametrize(("version", "right"), [((1, 0), True), ((2, 0), True), ((3, 0), True), ((9, 0), False)])
def test_versions_of_headers(tmp_path, version, right):
    path = with_header(tmp_path / "a.npz", header(), version=version)
    if right:
        assert known_statistics(path)["features"].mean.tolist() == [0.0] * 4
    else:
        assert "its header has the version 9.0, not 1.0, 2.0 or 3.0" in refused(path)


def test_what_is_larger_unpacked_than_this_machine_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", **WHOLE | {"arr_0": np.zeros(1 << 20, np.uint8)})
    assert known_statistics(tmp_path / "a.npz")
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 1000}[name])
    line = refused(tmp_path / "a.npz")
    assert "decompressed, takes 0.0 GiB at least, there are 0.0 here: write it with numpy.savez, uncompressed" in line
    assert known_statistics(written(tmp_path / "b.npz"))  # what is not compressed is as large as its file


def test_files_that_are_none(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "text.npz").write_text("mu")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    (tmp_path / "empty.npz").touch()
    for name, said in (("folder", "no regular"), ("text", "damaged"), ("zero", "no regular"), ("empty", "damaged")):
        assert said in refused(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"holds no mu"):
        ArrayFile(written(tmp_path / "a.npz", mu=None)).read("mu")


def test_features_that_are_not_finite_have_no_statistics():
    moments = Moments(2)
    moments.update(torch.tensor([[1.0, 2.0], [3.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="the features of some images are not finite"):
        moments.statistics()
