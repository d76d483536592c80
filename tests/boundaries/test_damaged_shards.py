"""Tars of images and of latents that are not what their index or manifest says: refused by shard and member."""

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.image_files import write_images
from support.refusals import assert_refused, contents, time_limit

from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.data.order import Order
from ldm.data.shards import Shards, pack
from ldm.data.sources import Folder
from ldm.runtime.files import sha256


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Eight images in one training shard, two in the other split's."""
    folder = tmp_path_factory.mktemp("packed")
    write_images(folder / "photos" / "cat", 5)
    write_images(folder / "photos" / "dog", 5)
    pack(Folder(root=str(folder / "photos"), val_fraction=0.2, resolution=8), folder / "shards", 100, list)
    return folder / "shards"


@pytest.fixture
def copy(packed, tmp_path):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def members_of(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def read_all(source: Shards, split: Any = "train") -> list[str]:
    samples = [sample for part in source.parts(split, 1) for sample in part.samples()]
    for sample in samples:
        source.decode(sample)
    return [sample.key for sample in samples]


def of(folder: Path, **options: Any) -> Shards:
    return Shards(root=str(folder), resolution=8, **options)


def foreign(folder: Path, **options: Any) -> Shards:
    urls = str(folder / "train-000000.tar")
    return Shards(urls=urls, val_urls=urls, num_classes=2, resolution=8, **options)


def believe_sizes(folder: Path) -> None:
    """An index of format 1, which has neither sizes nor checksums."""
    index = json.loads((folder / "index.json").read_text())
    for split in index["shards"].values():
        for shard in split:
            del shard["bytes"], shard["sha256"]
    del index["format"]
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_tar_that_ends_early(share, copy):
    path = copy / "train-000000.tar"
    members = members_of(path)
    end = members[-1].offset_data + members[-1].size
    path.write_bytes(path.read_bytes()[: int(share * end)])
    assert_refused(lambda: read_all(of(copy)), "bytes, index.json says", copy, "train-000000.tar")
    assert_refused(lambda: read_all(foreign(copy)), "is damaged", copy, "train-000000.tar")
    believe_sizes(copy)
    assert_refused(lambda: read_all(of(copy)), "is damaged", copy, "train-000000.tar")
    assert_refused(
        lambda: list(islice(of(copy).training_loader(Order(seed=0, batch_size=2), 0), 9)), "is damaged", copy
    )
    skipping = foreign(copy, on_error="skip")
    with time_limit():
        assert len(read_all(skipping)) < 8
    assert skipping.skipped.value == 1


@pytest.mark.parametrize("byte", [0, 3, 101, 124, 148, 156, 257])
@pytest.mark.parametrize("member", [0, 7, 15])
def test_a_flipped_bit_in_a_members_header(byte, member, copy):
    path = copy / "train-000000.tar"
    data, header = bytearray(path.read_bytes()), members_of(path)[member]
    data[header.offset + byte] ^= 4
    path.write_bytes(data)
    assert_refused(lambda: read_all(foreign(copy)), "a header is damaged", copy, "train-000000.tar")
    assert_refused(lambda: of(copy, verify="full").class_names, "differs from the checksum in index.json", copy)


def test_a_flipped_bit_in_a_picture_is_noticed_by_its_sum(copy):
    path = copy / "train-000000.tar"
    data, member = bytearray(path.read_bytes()), members_of(path)[0]
    data[member.offset_data + member.size // 2] ^= 1
    path.write_bytes(data)
    assert_refused(lambda: of(copy, verify="full").class_names, "differs from the checksum", copy, "train-000000.tar")


def test_every_seventh_byte_flipped_in_turn_is_noticed_or_without_effect(copy):
    """Of the tar by its checksum, each; of the index by its schema, or what is read is the same."""
    right, names = of(copy).class_names, read_all(of(copy))
    for name in ("train-000000.tar", "index.json"):
        path = copy / name
        whole = path.read_bytes()
        step = 7 if name == "index.json" else 7 * 73
        for i in range(0, len(whole), step):
            damaged = bytearray(whole)
            damaged[i] ^= 1
            path.write_bytes(damaged)
            try:
                source = of(copy, verify="full")
                if name == "index.json" and source.class_names != right:
                    continue  # a letter of a class's name, which nothing else knows
                assert read_all(source) == names
                assert name == "index.json", i
            except ValueError as error:
                assert "\n" not in str(error)
        path.write_bytes(whole)


def write_tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = (len(data) if kind == tarfile.REGTYPE else 0), kind
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)


PNG = b"\x89PNG"
MEMBERS = [
    ({}, "holds no image"),
    ({"a.cls": b"0"}, "holds no image"),
    ({"a.txt": b"x", "a.cls": b"0"}, "holds no image"),
    ({"a.png": PNG}, "has no .cls member"),
    ({"a.png": PNG, "a.cls": b"2"}, "has the label 2, outside 0 ... 1"),
    ({"a.png": PNG, "a.cls": b"-1"}, "which is no whole number from 0"),
    ({"a.png": PNG, "a.cls": b"cat"}, "which is no whole number from 0"),
    ({"a.png": PNG, "a.cls": b""}, "which is no whole number from 0"),
    ({"a.png": PNG, "a.cls": b"1.5"}, "which is no whole number from 0"),
    ({"a.png": PNG, "a.cls": b"\xff"}, "which is no whole number from 0"),
    ({"a.png": PNG, "a.cls": 5000 * b"9"}, "has the label"),
    ({"a.png": PNG, "a.cls": b"0"}, "cannot decode"),
    ({"a.png": b"", "a.cls": b"0"}, "cannot decode"),
]


@pytest.mark.parametrize(("members", "said"), MEMBERS, ids=range(len(MEMBERS)))
def test_members_are_a_picture_and_its_label(members, said, tmp_path):
    write_tar(tmp_path / "train-000000.tar", members)
    assert_refused(lambda: read_all(foreign(tmp_path)), said, tmp_path, "train-000000.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_pipes_and_devices_in_a_tar_are_no_pictures(kind, tmp_path):
    write_tar(tmp_path / "train-000000.tar", {"a.png": b"", "a.cls": b""}, kind)
    assert_refused(lambda: read_all(foreign(tmp_path)), "holds no image", tmp_path, "train-000000.tar")


def test_a_member_of_any_size_is_not_read_for_its_header(tmp_path):
    path = tmp_path / "train-000000.tar"
    info = tarfile.TarInfo("a.png")
    info.size = 2**40
    path.write_bytes(info.tobuf() + bytes(1024))
    assert_refused(lambda: read_all(foreign(tmp_path)), "more than a picture can have", tmp_path, "train-000000.tar")


@pytest.mark.parametrize("what", ["gone", "pipe", "folder", "empty", "text"])
def test_what_is_no_tar(what, copy):
    path = copy / "train-000000.tar"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "gone":
        path.write_bytes(b"" if what == "empty" else 2000 * b"x")
    said = "which index.json lists, is missing" if what in ("gone", "pipe", "folder") else "bytes, index.json says"
    assert_refused(lambda: read_all(of(copy)), said, copy, "train-000000.tar")
    believe_sizes(copy)
    assert_refused(lambda: read_all(of(copy)), "is damaged", copy, "train-000000.tar")


def test_a_count_is_held_to_what_the_shard_holds(copy):
    index = json.loads((copy / "index.json").read_text())
    for count in (3, 9):
        index["shards"]["train"][0]["count"] = count
        (copy / "index.json").write_text(json.dumps(index))
        assert_refused(lambda: read_all(of(copy)), f"it holds 8 images, index.json says {count}", copy)


def test_names_are_no_urls(tmp_path, monkeypatch):
    """Of an index, of the folder itself, and of tars that lie in a folder."""
    from ldm.evaluation.image_sets import open_set

    monkeypatch.chdir(tmp_path)
    name = "a.tar::pipe:touch pwned #.tar"
    write_tar(tmp_path / name, {"a.png": PNG, "a.cls": b"0"})
    source = Folder(root=".", resolution=8)
    with time_limit(), pytest.raises(ValueError, match="cannot decode"):
        list(open_set(tmp_path, source, "reference").batches(2, 0, 0, 1))
    index = {"class_names": ["cat"], "shards": {}}
    shard = {"name": "pipe:touch pwned; cat x.tar", "count": 1}
    index["shards"] = {"train": [shard], "val": [shard]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert_refused(lambda: read_all(Shards(root=".", resolution=8)), "shards.train[0].name is pipe:", tmp_path)
    assert not (tmp_path / "pwned").exists()


# the latent cache, whose shards have the checksum that the manifest says


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
    moments, labels = cache(MOMENTS, LABELS).__getitems__([(0, 0), (0, 1), (0, 2)])
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
                assert name == "manifest.json", i  # a digit of a mean, say, which nothing else knows
            except ValueError as error:
                assert "\n" not in str(error)
        path.write_bytes(whole)
    (tmp_path / "verified.json").unlink(missing_ok=True)
    assert contents(tmp_path) == before
