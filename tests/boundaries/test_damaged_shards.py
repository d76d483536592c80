"""Tars of images and of latents that are not what their index or manifest says: refused by shard and member."""

import json
import os
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.image_files import write_images
from support.refusals import assert_refused, time_limit
from support.tars import write_tar

from ldm.data.order import Order
from ldm.data.shards import Shards, pack
from ldm.data.sources import Folder


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
    del index["checksum"]
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


@pytest.mark.parametrize("members", [{}, {"a.png": PNG, "a.cls": b"0"}], ids=["empty", "undecodable"])
def test_a_stream_without_any_image_ends_instead_of_looking_for_ever(members, tmp_path):
    write_tar(tmp_path / "train-000000.tar", members)
    loader = foreign(tmp_path, on_error="skip").training_loader(Order(seed=0, batch_size=2), 0)
    assert_refused(lambda: next(iter(loader)), "no image can be decoded in", tmp_path, "train-000000.tar")


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
    del index["checksum"]
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
