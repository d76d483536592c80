from itertools import islice

import pytest
import torch
from support.image_files import write_images

from ldm.data.order import Order
from ldm.data.shards import Shards, _ShardStream, pack
from ldm.data.sources import Folder
from ldm.evaluation.image_sets import SourceSet


@pytest.fixture
def packed(photos, tmp_path):
    source = Folder(root=str(photos), val_fraction=0.2, resolution=16)
    pack(source, tmp_path / "shards", 3, list)
    return source, Shards(root=str(tmp_path / "shards"), resolution=16, shuffle_buffer=4)


def contents(source, split):
    return sorted((s.data, s.label) for part in source.parts(split, 5) for s in part.samples())


def test_packing_keeps_every_byte_and_label(packed):
    source, shards = packed
    assert shards.class_names == ["cat", "dog"]
    assert len(shards.shards("train")) == 6
    for split in ("train", "val"):
        assert contents(shards, split) == contents(source, split)


def test_packing_is_reproducible(photos, tmp_path):
    for name in ("a", "b"):
        pack(Folder(root=str(photos), resolution=16), tmp_path / name, 5, list)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def batches(shards, count, workers=0, **order):
    loader = shards.training_loader(Order(**{"seed": 0, "batch_size": 2} | order), workers)
    return [image for image, _ in islice(loader, count)]


@pytest.mark.parametrize("consumers", [1, 2, 5])
def test_an_epoch_deals_each_image_to_one_consumer(packed, consumers):
    stream = _ShardStream(packed[1], Order(seed=0, batch_size=2))
    for epoch in range(2):
        keys = [s.key for c in range(consumers) for s in stream.shuffled(epoch, c, consumers)]
        assert len(keys) == len(set(keys)) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_stopped(packed, workers):
    """After an odd and an even number of batches, in the first epoch of 8 batches and in later ones."""
    _, shards = packed
    unbroken = batches(shards, 20, workers)
    for done in (3, 4, 13, 18):
        rest = batches(shards, 20 - done, workers, images_seen=2 * done)
        for image, wanted in zip(rest, unbroken[done:], strict=True):
            assert torch.equal(image, wanted), done


def test_urls_braces_and_pipes(packed, tmp_path):
    folder = tmp_path / "shards"
    shards = Shards(
        urls=f"pipe:cat {folder}/train-00000{{0..5}}.tar",
        val_urls=f"{folder}/val-000000.tar",
        num_classes=2,
        resolution=16,
    )
    assert contents(shards, "train") == contents(packed[1], "train")


def test_whole_epochs_are_skipped_without_reading(packed, monkeypatch):
    """The last 2 of 12 batches of 4: three epochs of 16 images."""
    read, plain = [], Shards._sample
    monkeypatch.setattr(Shards, "_sample", lambda self, *a: (read.append(a[0]), plain(self, *a))[1])
    batches(packed[1], 2, batch_size=4, images_seen=40)
    assert len(read) <= 16 + 4


def test_packing_over_shards_in_use_is_refused(packed, tmp_path):
    with pytest.raises(ValueError, match="is packed already"):
        pack(packed[0], tmp_path / "shards", 3, list)


def test_too_few_shards_for_the_consumers(packed):
    with pytest.raises(ValueError, match="6 training shards cannot feed 4 ranks x 2 workers"):
        batches(packed[1], 1, workers=2, world=4)


def test_truncated_and_missing_shards_are_named(packed, tmp_path):
    path = tmp_path / "shards" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"train-000000\.tar"):
        contents(packed[1], "train")
    path.unlink()
    with pytest.raises(ValueError, match=r"train-000000\.tar"):
        contents(packed[1], "train")


def test_unusable_options(tmp_path):
    with pytest.raises(ValueError, match=r"either data\.root"):
        Shards(resolution=16)
    with pytest.raises(ValueError, match=r"data\.num_classes"):
        Shards(urls="a.tar", resolution=16)
    write_images(tmp_path / "folder", 2)
    with pytest.raises(ValueError, match=r"holds no index\.json"):
        Shards(root=str(tmp_path / "folder"), resolution=16).shards("train")


def test_urls_alone_tell_remote_shards_apart():
    commands = [f"pipe:fetch {'x' * 300} host/{name}/0.tar" for name in ("a", "b", "a")]
    options = {"val_urls": "0.tar", "num_classes": 1, "resolution": 8}
    sets = [SourceSet(Shards(urls=command, **options), ("train",)) for command in commands]
    assert sets[0].place != sets[1].place
    assert sets[0].card["content"] != sets[1].card["content"]
    assert (sets[0].place, sets[0].card) == (sets[2].place, sets[2].card)
