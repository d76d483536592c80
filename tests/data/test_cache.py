import json
import os
import resource
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.linalg
import torch
from support.image_files import write_images

from ldm.data import cache_reader
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.data.cache_writer import CacheWriter, cache_identity
from ldm.data.formats import ShardCard
from ldm.data.shard_writer import LatentSums
from ldm.data.sources import Folder
from ldm.images import to_x
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.files import sha256


@pytest.fixture
def model():
    return Autoencoder(channels=8, channel_mult=[1, 2], num_res_blocks=1, latent_channels=2).eval()


@pytest.fixture
def writer(photos, tmp_path, model):
    source = Folder(root=str(photos), val_fraction=0.2, resolution=16, flip=True)

    @torch.inference_mode()
    def encode(image):
        return model.encode(to_x(image)).moments()

    identity = cache_identity(source, 16 * "f")
    folder = tmp_path / "latents"
    return CacheWriter(
        folder=folder, source=source, encode=encode, identity=identity, shard_size=5, batch_size=3, num_workers=2
    )


def write_all(writer):
    for _, part in writer.parts():
        if not writer.is_done(part):
            writer.write(part)
    return writer.merge()


def test_stores_the_posterior_of_each_image_and_of_its_mirrored_pixels(writer, model):
    write_all(writer)
    moments = CachedMoments(LatentCache(str(writer.folder), "full"), "train")
    assert len(moments) == 16
    source = writer.source
    for index in (0, 7, 15):
        sample = source.read("train", index)
        image = source.center_view(source.decode(sample))[None]
        for epoch in (0, 1):
            mirrored = (epoch + index) % 2 == 1
            view = image.flip(-1) if mirrored else image
            stored, label, *_ = moments.__getitems__([(epoch, index)])
            with torch.inference_mode():
                expected = model.encode(to_x(view)).moments()
            assert stored.dtype == torch.float16
            torch.testing.assert_close(stored.float(), expected, rtol=2e-3, atol=2e-3)
            assert label.tolist() == [sample.label]


def test_statistics_are_those_of_posterior_samples_of_the_training_split(writer):
    manifest = write_all(writer)
    cache = LatentCache(str(writer.folder), "full")
    moments = CachedMoments(cache, "train")
    everything = torch.cat([moments.__getitems__([(e, i) for i in range(16)])[0] for e in (0, 1)]).double()
    mean, std = everything.chunk(2, dim=1)
    torch.testing.assert_close(torch.tensor(manifest.mean).double(), mean.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    variance = (std**2).mean((0, 2, 3)) + mean.var((0, 2, 3), correction=0)  # law of total variance
    torch.testing.assert_close(torch.tensor(manifest.std).double(), variance.sqrt(), rtol=1e-6, atol=1e-6)


def test_a_whitening_is_the_inverse_root_of_the_channels_correlation(writer):
    plain = write_all(writer)
    manifest = write_all(replace(writer, whiten=True))  # no shard is written again
    assert (plain.shards, plain.mean, plain.std) == (manifest.shards, manifest.mean, manifest.std)
    cache = LatentCache(str(writer.folder), "full")
    moments = CachedMoments(cache, "train")
    everything = torch.cat([moments.__getitems__([(e, i) for i in range(16)])[0] for e in (0, 1)]).double()
    mean, std = everything.chunk(2, dim=1)
    covariance = np.cov(mean.transpose(0, 1).flatten(1), ddof=0) + np.diag((std**2).mean((0, 2, 3)))
    deviations = np.sqrt(covariance.diagonal())
    oracle = scipy.linalg.fractional_matrix_power(covariance / np.outer(deviations, deviations), -0.5)
    np.testing.assert_allclose(manifest.whitening, oracle, rtol=1e-6)
    latents = cache.stats.normalize(mean + std * torch.randn_like(mean))
    correlation = np.corrcoef(latents.transpose(0, 1).flatten(1))
    np.testing.assert_allclose(correlation, np.eye(2), atol=0.05)
    for card in writer.folder.glob("train-*.json"):  # as of shards of before
        found = ShardCard.read(card)
        found.model_copy(update={"sums": found.sums.model_copy(update={"products": None})}).write(card)
    with pytest.raises(ValueError, match="whiten=true wants sums over pairs of channels, which shards of before"):
        replace(writer, whiten=True).merge()
    assert writer.merge() == plain


def test_channels_that_follow_from_each_other_are_not_whitened():
    mean = np.random.default_rng(0).standard_normal((50, 1, 1, 3, 3))
    sums = LatentSums()
    sums.add(np.concatenate([mean, 2 * mean, np.zeros((50, 1, 2, 3, 3))], axis=2))
    with pytest.raises(
        ValueError, match=r"the latents' channels follow from each other, to less than 0.0001 of .*: pass whiten=false"
    ):
        sums.statistics(whiten=True)
    assert sums.statistics(whiten=False)["whitening"] is None


def test_a_shard_holds_one_file_open_however_many_blocks_it_has(writer, monkeypatch):
    monkeypatch.setattr("ldm.data.cache_writer.BLOCK", 1)
    write_all(writer)
    moments = CachedMoments(LatentCache(str(writer.folder), "full"), "train")
    moments.__getitems__([(0, i) for i in range(16)])
    assert [len(blocks) for blocks in moments.blocks.values()] == [2, 2, 2, 1]  # of 3 images, a batch of the encoder
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert sum(name.startswith(str(writer.folder)) for name in opened) == 4


def test_as_many_files_as_shards_may_be_open(writer, monkeypatch):
    write_all(writer)
    cache, asked = LatentCache(str(writer.folder), "full"), []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    CachedMoments(cache, "train")
    assert asked == []
    for times, limit in ((200, 1312), (2, 2000)):  # 800 shards to train on; 1,600, which leaves room for few others
        cache.manifest.shards.train.extend(cache.manifest.shards.train * (times - 1))
        CachedMoments(cache, "train")
        assert asked.pop()[0] in (limit, limit + 1)  # one to validate on
    cache.manifest.shards.train.extend(cache.manifest.shards.train * (2 - 1))
    with pytest.raises(ValueError, match=r"lets a process open 2000 files.* a larger shard_size="):
        CachedMoments(cache, "train")


def test_slices_in_any_order_make_the_same_cache(writer, tmp_path):
    whole = write_all(writer)
    for file in writer.folder.glob("*"):
        file.unlink()
    parts = [part for _, part in writer.parts()]
    assert len(parts) == 5
    for part in parts[1::2]:
        writer.write(part)
    assert writer.merge() is None
    for part in parts[0::2]:
        writer.write(part)
    assert writer.merge() == whole


def test_a_rerun_writes_only_what_is_missing_or_damaged(writer):
    manifest = write_all(writer)
    names = sorted(p.name for p in writer.folder.glob("*.tar"))
    (writer.folder / names[0]).unlink()
    damaged = writer.folder / names[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert [writer.is_done(part) for _, part in writer.parts()].count(False) == 2
    assert write_all(writer) == manifest
    LatentCache(str(writer.folder), "full")


def test_a_failed_shard_leaves_nothing(writer, monkeypatch):
    _, part = writer.parts()[0]
    monkeypatch.setattr(Folder, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.write(part)
    assert list(writer.folder.iterdir()) == []


def test_another_autoencoders_shards_are_refused(writer):
    write_all(writer)
    other = replace(writer, identity=writer.identity.model_copy(update={"autoencoder": 16 * "e"}))
    with pytest.raises(ValueError, match=r"autoencoder is f{16}, not e{16}.* choose another run="):
        other.is_done(other.parts()[0][1])


def test_images_that_came_or_went_since_are_noticed(writer, photos):
    write_all(writer)
    write_images(photos / "cow", 3)
    source = Folder(root=str(photos), val_fraction=0.2, resolution=16, flip=True)
    changed = replace(writer, source=source)
    with pytest.raises(ValueError, match=r"images is [0-9a-f]{16}, not [0-9a-f]{16}"):
        write_all(changed)


def test_checksums_are_checked_once_and_again_where_a_shard_has_changed(writer, tmp_path, monkeypatch):
    write_all(writer)
    read = []
    monkeypatch.setattr(cache_reader, "sha256", lambda path: read.append(path.name) or sha256(path))
    for verify, times in (("size", 0), ("once", 1), ("once", 0), ("full", 1), ("once", 0)):
        read.clear()
        LatentCache(str(writer.folder), verify)
        shards = sorted(path.name for path in writer.folder.glob("*.tar"))
        assert sorted(read) == shards * times, verify
    for damaged in ("{", "[]", '{"train-000000.tar": 3}'):
        (writer.folder / cache_reader.VERIFIED).write_text(damaged)
        LatentCache(str(writer.folder), "once")
        assert sorted(read) == shards
        read.clear()
    shutil.copytree(writer.folder, tmp_path / "copy")  # with the times of change, and with what was verified of them
    LatentCache(str(tmp_path / "copy"), "once")
    assert sorted(read) == shards
    first = writer.folder / shards[0]
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="differs from the manifest's checksum"):
        LatentCache(str(writer.folder), "once")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-1] + b"x"), "differs from the manifest's checksum"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "bytes, the manifest says"),
        (lambda f: f.unlink(), "is missing"),
    ],
)
def test_damaged_cache_is_refused_with_the_mending_command(writer, damage, message):
    write_all(writer)
    damage(next(writer.folder.glob("train-*.tar")))
    with pytest.raises(ValueError, match=f"{message}.*run the same `ldm cache-latents` again"):
        LatentCache(str(writer.folder), "full")


def test_unfinished_and_foreign_caches_are_refused(writer, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        LatentCache(str(tmp_path / "nowhere"), "full")
    writer.write(writer.parts()[0][1])
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        LatentCache(str(writer.folder), "full")
    (writer.folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="has the format 99; this version of ldm reads 1"):
        LatentCache(str(writer.folder), "full")
    (writer.folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged, not JSON.* run the same"):
        LatentCache(str(writer.folder), "full")


def test_webdataset_reads_the_shards(writer):
    import webdataset as wds

    write_all(writer)
    with wds.gopen(str(writer.folder / "train-000000.tar")) as stream:
        files = wds.tariterators.tar_file_expander([{"url": "shard", "stream": stream}])
        blocks = list(islice(wds.tariterators.group_by_keys(files), 3))
    assert len(blocks) == 1
    assert np.lib.format.MAGIC_PREFIX in blocks[0]["moments.npy"]


def test_pictures_replaced_under_their_names_are_encoded_again(writer, photos, caplog):
    manifest = write_all(writer)
    file = sorted((photos / "cat").iterdir())[0]
    (photos / "cat" / "new.png").write_bytes(sorted((photos / "dog").iterdir())[3].read_bytes())
    (photos / "cat" / "new.png").replace(file)
    fresh = replace(writer, source=replace(writer.source))
    done = [fresh.is_done(part) for _, part in fresh.parts()]
    assert done.count(False) == 1
    assert "pictures were replaced under their names" in caplog.text
    assert write_all(fresh) != manifest


def test_pictures_that_were_touched_or_copied_are_not(writer, photos, caplog):
    manifest = write_all(writer)
    for path in photos.rglob("*.png"):
        os.utime(path, (1, 1))
    fresh = replace(writer, source=replace(writer.source))
    assert all(fresh.is_done(part) for _, part in fresh.parts())
    assert "replaced" not in caplog.text
    read = []
    again = replace(fresh, source=replace(writer.source))
    again.source.__class__.read, right = (lambda *a: read.append(a) or right(*a)), again.source.__class__.read
    try:
        assert all(again.is_done(part) for _, part in again.parts())
    finally:
        again.source.__class__.read = right
    assert read == []  # the sizes and times are known by now
    assert write_all(fresh) == manifest
