"""What lies in a folder beside the images that are read is counted, and said once."""

from collections import Counter

import pytest
from support.image_files import write_images

from ldm.data.image_data import in_order
from ldm.data.listing import held_out, in_words, list_images
from ldm.data.shards import pack
from ldm.data.sources import Folder
from ldm.evaluation.image_sets import open_set


def add_others(folder):
    """Three files that are not read, and two hidden ones, of which nobody wants to hear."""
    for name in ("a.heic", "b.HEIC", "c.tif", ".DS_Store", "._d.heic"):
        (folder / name).write_bytes(b"")
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs" / "e.heic").write_bytes(b"")


def said(caplog, what="left out"):
    lines = [record.getMessage() for record in caplog.records if what in record.getMessage()]
    caplog.clear()
    return lines


def test_other_files_are_counted_and_said_once(photos, caplog):
    add_others(photos / "cat")
    wanted = [f"{photos}: left out 3 files that are not jpg, png or webp: 2 .heic, 1 .tif"]
    source = Folder(root=str(photos), resolution=16)
    for _ in range(2):
        list(in_order(source, "val", 4, num_workers=2))
    assert said(caplog) == wanted
    assert Folder(root=str(photos), val_root=str(photos), resolution=16).count("val") == 20
    assert said(caplog) == wanted


def test_those_of_both_roots_are_said(photos, tmp_path, caplog):
    for name in ("cat", "dog"):
        write_images(tmp_path / "val" / name, 1)
    (tmp_path / "val" / "cat" / "README").write_text("")
    Folder(root=str(photos), val_root=str(tmp_path / "val"), resolution=16).count("val")
    assert said(caplog) == [f"{tmp_path}/val: left out a file that is not jpg, png or webp: 1 without extension"]


@pytest.mark.parametrize("key", ["samples", "reference"])
def test_a_folder_of_samples_or_references_is_scored_whole_or_not_at_all(key, photos):
    images = open_set(photos, Folder(root=str(photos), resolution=30), key)
    assert images.card["set"] == "folder"
    add_others(photos / "dog")
    with pytest.raises(ValueError, match=rf"{key}=.* holds 20 images that can be read, and besides 2 \.heic, 1 \.tif"):
        open_set(photos, Folder(root=str(photos), resolution=30), key)


def test_packing_says_them(photos, tmp_path, caplog):
    add_others(photos / "dog")
    pack(Folder(root=str(photos), resolution=16), tmp_path / "shards", 30, list)
    assert len(said(caplog)) == 1


def test_where_there_is_nothing_else_nothing_is_said(photos, caplog):
    (photos / "cat" / ".hidden.heic").write_bytes(b"")
    assert list_images(str(photos), "data.root").others == Counter()
    Folder(root=str(photos), resolution=16).count("val")
    assert said(caplog) == []


def test_a_folder_of_other_files_alone_is_refused_with_what_it_holds(tmp_path):
    add_others(tmp_path)
    with pytest.raises(ValueError, match=r"holds no images \(jpg, .*\), but 2 \.heic, 1 \.tif: convert them"):
        list_images(str(tmp_path), "data.root")


def test_many_kinds_in_few_words():
    kinds = Counter({".heic": 1200} | {f".{letter}": 1 for letter in "fedcba"})
    assert in_words(kinds) == "1,200 .heic, 1 .a, 1 .b, 1 .c, 1 .d and 2 other kinds"


def test_held_out_images_stay_held_out_as_the_folder_grows():
    keys = [f"{i}.jpg" for i in range(1000)]
    before, after = held_out(keys, 0.1), held_out([*keys, "new.jpg"], 0.1)
    assert len(before) == 100
    assert len(set(before) & set(after)) >= 99
