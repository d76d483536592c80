"""Writes the latent cache: all shards, or those that a rerun or a task of a job array still has to write.

    FOLDER/train-000000.tar   up to BLOCK images a member: KEY.moments.npy, fp16 [n, views, 2C, h, w]; KEY.labels.npy
    FOLDER/train-000000.json  the shard's identity, count, size, checksum and float64 sums, written after the tar
    FOLDER/manifest.json      everything merged, written once all shards are there
    FOLDER/autoencoder.ckpt   the weights that encoded them

views is 2 if the source may be mirrored, else 1. The second view encodes the mirrored pixels, because the mirror image
of a latent is another latent than that of the mirrored pixels.
"""

import io
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from ldm.data.formats import MANIFEST, CachedShard, CachedSplits, CacheIdentity, Counts, Manifest, ShardCard, Sums
from ldm.data.samples import Contents, Part, Sample, Split
from ldm.data.sources import Source
from ldm.runtime.files import atomic_write, remove_leftovers, sha256

log = logging.getLogger(__name__)

BLOCK = 1024  # images a tar member: large enough to be read fast, small enough to be held in memory
AUTOENCODER_FILE = "autoencoder.ckpt"
Encode = Callable[[Tensor], Tensor]  # image [B, 3, R, R] uint8 -> moments [B, 2C, h, w]
_T = TypeVar("_T")
_View = tuple[Tensor, int]  # image [3, R, R] uint8, its label


def cache_identity(source: Source, weights_fingerprint: str) -> CacheIdentity:
    """What all shards of a cache have in common; `weights_fingerprint` is the autoencoder's."""
    return CacheIdentity(
        format=1,
        autoencoder=weights_fingerprint,
        preprocessing=source.preprocessing(),
        views=2 if source.flip else 1,
        dtype="float16",
        class_names=source.class_names,
    )


@dataclass(frozen=True, kw_only=True)
class CacheWriter:
    """Encodes parts of a source into shards.

    Args:
        folder:      where the shards are written.
        source:      of the images.
        encode:      image [B, 3, R, R] uint8 -> moments [B, 2C, h, w].
        identity:    what all shards have in common, see `cache_identity`.
        shard_size:  images a shard; a source that consists of shards decides itself.
        batch_size:  images that are encoded at once.
        num_workers: threads that decode images meanwhile.
    """

    folder: Path
    source: Source
    encode: Encode
    identity: CacheIdentity
    shard_size: int
    batch_size: int
    num_workers: int

    def parts(self) -> list[tuple[Split, Part]]:
        """All parts of both splits, in the order in which the tasks of a job array share them."""
        splits: tuple[Split, ...] = ("train", "val")
        return [(split, part) for split in splits for part in self.source.parts(split, self.shard_size)]

    def is_done(self, part: Part) -> bool:
        """Whether the part's shard is complete, by its checksum, and of the images that are there now.

        Raises:
            ValueError: if it belongs to another cache.
        """
        path, tar = self.folder / f"{part.name}.json", self.folder / f"{part.name}.tar"
        if not path.exists():
            return False
        card = self._card(part)
        if not (tar.is_file() and tar.stat().st_size == card.bytes and sha256(tar) == card.sha256):
            return False
        return not card.content or card.files == part.files() or self._holds_the_same(part, card)

    def _card(self, part: Part) -> ShardCard:
        """A part's card; ValueError if it is another cache's."""
        card = ShardCard.read(self.folder / f"{part.name}.json")
        differs = card.identity.difference(self.identity)
        if not differs and card.images != part.images:
            differs = f"images is {card.images}, not {part.images}"
        if differs:
            raise ValueError(
                f"{self.folder} holds shards of another cache ({differs}): choose another run=, or delete that folder"
            )
        return card

    def _holds_the_same(self, part: Part, card: ShardCard) -> bool:
        """Whether images whose files have other sizes or times are what was encoded: they are read for that."""
        if part.content() != card.content:
            log.warning("%s: pictures were replaced under their names, and are encoded again", part.name)
            return False
        remove_leftovers(self.folder / f"{part.name}.json")
        card.model_copy(update={"files": part.files()}).write(self.folder / f"{part.name}.json")
        return True

    def write(self, part: Part) -> None:
        """Encode one part, and write its tar, then its card: a card says that its tar is complete."""
        sums, count, tar_path = _Sums(), 0, self.folder / f"{part.name}.tar"
        for path in (tar_path, self.folder / f"{part.name}.json"):
            remove_leftovers(path)
        files, contents = part.files(), Contents()
        with atomic_write(tar_path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
            for i, (moments, labels) in enumerate(self._blocks(contents.of(part.samples()))):
                sums.add(moments)
                count += len(labels)
                key = f"{part.name}-{i:04d}"
                tar.write({"__key__": key, "moments.npy": _npy(moments), "labels.npy": _npy(labels)})
        if count == 0:
            raise ValueError(f"{part.name} holds no image that can be decoded")
        ShardCard(
            identity=self.identity,
            images=part.images,
            files=files,
            content=contents.digest(),
            shape=list(moments.shape[2:]),
            count=count,
            bytes=tar_path.stat().st_size,
            sha256=sha256(tar_path),
            sums=sums.of_shard(),
        ).write(self.folder / f"{part.name}.json")

    def _blocks(self, samples: Iterable[Sample]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (moments [n, views, 2C, h, w] fp16, labels [n] int64)."""
        pending: list[_View] = []
        moments: list[np.ndarray] = []
        labels: list[int] = []
        for view in _with_end(self._views(samples)):
            if view is not None:
                pending.append(view)
            if pending and (view is None or len(pending) == self.batch_size):
                moments.append(self._encode_views(torch.stack([image for image, _ in pending])))
                labels += [label for _, label in pending]
                pending = []
            if labels and (view is None or len(labels) >= BLOCK):
                yield np.concatenate(moments), np.array(labels, dtype=np.int64)
                moments, labels = [], []

    def _views(self, samples: Iterable[Sample]) -> Iterator[_View]:
        """The images that can be decoded, in order.

        Threads decode them two batches ahead of the encoder: they run at once, for Pillow releases Python's lock.
        """
        with ThreadPoolExecutor(self.num_workers) as pool:
            ahead: deque[Future[_View | None]] = deque()
            for sample in _with_end(samples):
                if sample is not None:
                    ahead.append(pool.submit(self._view, sample))
                while ahead and (sample is None or len(ahead) > 2 * self.batch_size):
                    if (view := ahead.popleft().result()) is not None:
                        yield view

    def _view(self, sample: Sample) -> _View | None:
        image = self.source.decode(sample)
        return None if image is None else (self.source.center_view(image), sample.label)

    def _encode_views(self, image: Tensor) -> np.ndarray:
        views = [image, image.flip(-1)][: self.identity.views]
        encoded = torch.stack([self.encode(view) for view in views], dim=1).half()
        if not encoded.isfinite().all():
            raise ValueError(
                "the autoencoder's moments are not finite in fp16: train it longer or with a larger regularizer.weight="
            )
        return encoded.cpu().numpy()

    def merge(self) -> Manifest | None:
        """Write and return the manifest once every shard is there; None while some are missing."""
        parts = self.parts()
        if not all((self.folder / f"{part.name}.json").exists() for _, part in parts):
            return None
        shards: dict[Split, list[CachedShard]] = {"train": [], "val": []}
        sums = _Sums()
        for split, part in parts:
            card = self._card(part)
            name = f"{part.name}.tar"
            shards[split].append(CachedShard(name=name, count=card.count, bytes=card.bytes, sha256=card.sha256))
            if split == "train":
                sums.merge(card.sums)
        mean, std = sums.mean_std()
        manifest = Manifest(
            **self.identity.model_dump(),
            shape=card.shape,
            count=Counts(**{split: sum(shard.count for shard in shards[split]) for split in shards}),
            mean=mean.tolist(),
            std=std.tolist(),
            shards=CachedSplits(**shards),
        )
        manifest.write(self.folder / MANIFEST)
        return manifest


class _Sums:
    """Float64 sums that give the mean and variance of posterior samples z.

    E[z] = E[mean], E[z^2] = E[mean^2 + std^2], per channel, over images, views and places.
    """

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, np.zeros(1), np.zeros(1)  # sums of z and z^2: [1] at first, then [C]

    def add(self, moments: np.ndarray) -> None:
        mean, std = np.split(moments.astype(np.float64), 2, axis=2)  # [n, views, C, h, w] each
        self.count += mean.size // mean.shape[2]
        self.first = self.first + mean.sum(axis=(0, 1, 3, 4))
        self.second = self.second + (mean**2 + std**2).sum(axis=(0, 1, 3, 4))

    def of_shard(self) -> Sums:
        return Sums(count=self.count, first=self.first.tolist(), second=self.second.tolist())

    def merge(self, other: Sums) -> None:
        self.count += other.count
        self.first = self.first + np.array(other.first)
        self.second = self.second + np.array(other.second)

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """ValueError for a channel that is the same in all latents: it could not be normalised."""
        mean = self.first / self.count
        variance = self.second / self.count - mean**2
        if not (variance > 0).all():
            dead = np.flatnonzero(~(variance > 0)).tolist()
            raise ValueError(f"channels {dead} of the latents do not vary: train the autoencoder longer")
        return mean, np.sqrt(variance)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _with_end(items: Iterable[_T]) -> Iterator[_T | None]:
    """The items, then None, at which a loop can finish what is pending by the same lines."""
    yield from items
    yield None
