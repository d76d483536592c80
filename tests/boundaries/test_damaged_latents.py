"""Shards of latents that are not what their manifest says, whatever their checksum: refused by shard and array."""

import io
import json
from typing import Any

import numpy as np
import pytest
from support.refusals import assert_refused, contents
from support.tars import write_tar

from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.runtime.files import sha256


@pytest.fixture
def cache(tmp_path):
    """Writes a cache of one training shard of these arrays."""

    def write(moments: Any, labels: Any, **changes: Any) -> CachedMoments:
        members = {"a.moments.npy": moments, "a.labels.npy": labels}
        data = {
            name: value if isinstance(value, bytes) else npy(value)
            for name, value in members.items()
            if value is not None
        }
        write_tar(tmp_path / "train-000000.tar", data)
        path = tmp_path / "train-000000.tar"
        shard = {"name": path.name, "count": 3, "bytes": path.stat().st_size, "sha256": sha256(path)}
        manifest = {
            "format": 1, "autoencoder": 16 * "0", "preprocessing": {}, "views": 1, "dtype": "float16",
            "class_names": ["cat", "dog"], "shape": [4, 2, 2], "count": {"train": 3, "val": 0},
            "mean": [0.0, 0.0], "std": [1.0, 1.0], "shards": {"train": [shard], "val": []},
        }  # fmt: skip
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | changes))
        return CachedMoments(LatentCache(str(tmp_path), "size"), "train")

    return write


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


MOMENTS, LABELS = np.zeros((3, 1, 4, 2, 2), np.float16), np.array([0, 1, 1])
ARRAYS = [
    (MOMENTS, np.array([0, 1, 2]), "labels go from 0 to 2, and there are 2 classes"),
    (MOMENTS, np.array([-1, 0, 1]), "labels go from -1 to 1"),
    (MOMENTS, np.array([0, 1]), "moments are float16 [3, 1, 4, 2, 2], not float16 [2, 1, 4, 2, 2]"),
    (MOMENTS[:2], LABELS[:2], "it holds 2 images, the manifest says 3"),
    (MOMENTS, LABELS.astype(np.int32), "labels are int32 [3], not int64 [n]"),
    (MOMENTS, LABELS.astype(">i8"), "labels are >i8 [3], not int64 [n]"),
    (MOMENTS, LABELS.astype(float), "labels are float64 [3], not int64 [n]"),
    (MOMENTS, LABELS[:, None], "labels are int64 [3, 1], not int64 [n]"),
    (MOMENTS, npy(LABELS).replace(b"<i8", b"|O8"), "a.labels.npy is of Python objects"),
    (MOMENTS.astype(np.float32), LABELS, "moments are float32"),
    (MOMENTS.astype(">f2"), LABELS, "moments are >f2"),
    (np.asfortranarray(np.zeros((3, 1, 4, 2, 3), np.float16)), LABELS, "is in Fortran order"),
    (np.zeros((3, 2, 4, 2, 2), np.float16), LABELS, "moments are float16 [3, 2, 4, 2, 2]"),
    (np.zeros((3, 1, 4, 2), np.float16), LABELS, "moments are float16 [3, 1, 4, 2]"),
    (npy(MOMENTS, (3, 0)), LABELS, "has npy's version (3, 0)"),
    (npy(MOMENTS).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"), LABELS, "is no shard of this cache"),
    (npy(MOMENTS)[:-8], LABELS, "a.moments.npy ends early"),
    (npy(MOMENTS).replace(b"(3,", b"(9,"), LABELS, "a.moments.npy ends early"),
    (b"", LABELS, "is no shard of this cache"),
    (b"nonsense", LABELS, "is no shard of this cache"),
    (MOMENTS, None, "is no shard of this cache"),
    (None, LABELS, "it holds 0 images, the manifest says 3"),
]


@pytest.mark.parametrize(("moments", "labels", "said"), ARRAYS, ids=range(len(ARRAYS)))
def test_arrays_are_of_their_type_and_shape_and_labels_are_classes(moments, labels, said, cache, tmp_path):
    data = cache(moments, labels)
    assert_refused(lambda: data.__getitems__([(0, 0), (0, 1), (0, 2)]), said, tmp_path, "train-000000.tar")


def test_right_arrays_are_read(cache):
    moments, labels, *_ = cache(MOMENTS, LABELS).__getitems__([(0, 0), (0, 1), (0, 2)])
    assert (moments.shape, labels.tolist()) == ((3, 4, 2, 2), [0, 1, 1])


@pytest.mark.parametrize("verify", ["once", "full"])
def test_every_seventh_byte_of_a_latent_shard_and_its_manifest(verify, cache, tmp_path):
    cache(MOMENTS, LABELS)
    before = contents(tmp_path)
    for name in ("train-000000.tar", "manifest.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        for i in range(0, len(whole), 7 * 31 if name.endswith("tar") else 7):
            damaged = bytearray(whole)
            damaged[i] ^= 1
            path.write_bytes(damaged)
            try:
                again = LatentCache(str(tmp_path), verify)
                CachedMoments(again, "train").__getitems__([(0, 0), (0, 1), (0, 2)])
                assert name == "manifest.json", i  # which json.dumps wrote here, without its checksum
            except ValueError as error:
                assert "\n" not in str(error)
        path.write_bytes(whole)
    (tmp_path / "verified.json").unlink(missing_ok=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((0, 0, 0), float("nan"), "moments that are not finite"),
        ((2, 0, 3), float("inf"), "moments that are not finite"),
        ((1, 0, 1), float("-inf"), "moments that are not finite"),
        ((1, 0, 2), -0.5, "standard deviations that are negative"),
        ((0, 0, 3), -6e-8, "standard deviations that are negative"),
        ((0, 0, 0), -65504.0, None),
        ((0, 0, 0), 65504.0, None),
        ((0, 0, 2), -0.0, None),
        ((0, 0, 2), 65504.0, None),
    ],
)
@pytest.mark.parametrize("verify", ["once", "full"])
def test_each_moment_is_finite_and_each_std_not_negative(verify, place, value, said, cache, tmp_path):
    """The largest and the least float16 are numbers like others."""
    moments = MOMENTS.copy()
    moments[(*place, 1, 1)] = value
    cache(moments, LABELS)
    if said is None:
        LatentCache(str(tmp_path), verify)
    else:
        assert_refused(lambda: LatentCache(str(tmp_path), verify), said, tmp_path, "train-000000.tar")
