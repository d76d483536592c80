"""Writes the latent cache: all shards, or those that a rerun or a task of a job array still has to write.

    FOLDER/train-000000.tar   up to BLOCK images a member: KEY.moments.npy, fp16 [n, views, 2C, h, w], or, in a cache
                              of codes, KEY.codes.npy, uint16 or int32 [n, views, 1, h, w]; KEY.labels.npy, int64 [n];
                              and what is kept beside, each where there is some:
                                  KEY.captions.npy      UTF-8 of equal length [n]
                                  KEY.embeddings.npy    fp16 [n, L, D], of captions; KEY.text_mask.npy, bool [n, L]
                                  KEY.low.npy           uint8 [n, 3, r, r], small copies of the images, not mirrored
                                  KEY.features.npy      fp16 [n, D, h, w], dense features of them, for alignment
    FOLDER/train-000000.json  the shard's identity, count, size, checksum and float64 sums, written after the tar
    FOLDER/manifest.json      everything merged, written once all shards are there
    FOLDER/autoencoder.ckpt   the weights that encoded them

What the shards are made of says a class: images (`ldm.data.cache_writer`), or a teacher's samples (`pair_writer`).
"""

import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import webdataset as wds

from ldm.data.formats import MANIFEST, CachedShard, CachedSplits, CacheIdentity, Counts, Manifest, ShardCard, Sums
from ldm.data.samples import Contents, Part, Split
from ldm.runtime.files import atomic_write, remove_leftovers, sha256

log = logging.getLogger(__name__)

BLOCK = 1024  # images a tar member: large enough to be read fast, small enough to be held in memory
AUTOENCODER_FILE = "autoencoder.ckpt"
MOMENTS, CODES = "moments", "codes"  # members: a cache has the one or the other
LEAST_SHARE = 1e-4  # of a direction's variance, over the channels' own: fp16 rounds them to 1e-7 where they are centred
MOST_WHITENED = 256  # channels
CAPTIONS = "captions"
FEATURES = "features"
NOWHERE: Mapping[str, int] = MappingProxyType({})
Kept = dict[str, np.ndarray]  # by the members' names


class Block(NamedTuple):
    """Up to BLOCK images: moments [n, views, 2C, h, w] fp16, or codes, labels [n] int64, and what is kept beside."""

    moments: np.ndarray
    labels: np.ndarray
    kept: Kept = {}  # noqa: RUF012  # nobody writes into it


@dataclass(frozen=True, kw_only=True)
class ShardWriter(ABC):
    """Writes parts as shards.

    Args:
        folder:     where the shards are written.
        identity:   what all shards have in common.
        shard_size: images a shard, where the parts are not shards already.
    """

    folder: Path
    identity: CacheIdentity
    shard_size: int

    @abstractmethod
    def parts(self) -> list[tuple[Split, Part]]:
        """All parts of both splits, in the order in which the tasks of a job array share them."""

    @abstractmethod
    def blocks(self, part: Part, contents: Contents) -> Iterator[Block]:
        """What a part holds, at most BLOCK images at a time; the samples that are read for it pass through contents."""

    @abstractmethod
    def statistics(self, sums: "LatentSums") -> dict[str, Any]:
        """What normalises the latents, of the training shards' sums: a manifest's mean, std and whitening."""

    def is_done(self, part: Part, elsewhere: Mapping[str, int] = NOWHERE) -> bool:
        """Whether the part's shard is complete, by its checksum, and of the images that are there now.

        Args:
            elsewhere: sizes of shards that lie in an object store, and not here

        Raises:
            ValueError: if it belongs to another cache.
        """
        path, tar = self.folder / f"{part.name}.json", self.folder / f"{part.name}.tar"
        if not path.exists():
            return False
        card = self._card(part)
        if not tar.exists() and elsewhere.get(tar.name) == card.bytes:
            return self._is_of(part, card)
        if not (tar.is_file() and tar.stat().st_size == card.bytes and sha256(tar) == card.sha256):
            return False
        return self._is_of(part, card)

    def _is_of(self, part: Part, card: ShardCard) -> bool:
        """Whether a card is of the images that are there now."""
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
        """Write one part's tar, then its card: a card says that its tar is complete."""
        sums, tar_path = LatentSums(), self.folder / f"{part.name}.tar"
        count = captioned = 0
        for path in (tar_path, self.folder / f"{part.name}.json"):
            remove_leftovers(path)
        files, contents = part.files(), Contents()
        with atomic_write(tar_path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
            for i, (moments, labels, kept) in enumerate(self.blocks(part, contents)):
                sums.add(moments)
                count += len(labels)
                captioned += int((kept.get(CAPTIONS, np.zeros(0, "S1")) != b"").sum())
                members = {MOMENTS if self.identity.codes is None else CODES: moments, "labels": labels, **kept}
                files_of = {f"{name}.npy": _npy(array) for name, array in members.items()}
                tar.write({"__key__": f"{part.name}-{i:04d}", **files_of})
        if count == 0:
            raise ValueError(f"{part.name} holds no image that can be decoded")
        ShardCard(
            identity=self.identity,
            images=part.images,
            files=files,
            content=contents.digest(),
            shape=list(moments.shape[2:]),
            count=count,
            captioned=captioned,
            bytes=tar_path.stat().st_size,
            sha256=sha256(tar_path),
            sums=sums.of_shard(),
        ).write(self.folder / f"{part.name}.json")

    def merge(self) -> Manifest | None:
        """Write and return the manifest once every shard is there; None while some are missing."""
        parts = self.parts()
        if not all((self.folder / f"{part.name}.json").exists() for _, part in parts):
            return None
        shards: dict[Split, list[CachedShard]] = {"train": [], "val": []}
        sums, captioned = LatentSums(), 0
        for split, part in parts:
            card = self._card(part)
            name = f"{part.name}.tar"
            shards[split].append(CachedShard(name=name, count=card.count, bytes=card.bytes, sha256=card.sha256))
            if split == "train":
                sums.merge(card.sums)
                captioned += card.captioned
        manifest = Manifest(
            **self.identity.model_dump(),
            shape=card.shape,
            count=Counts(**{split: sum(shard.count for shard in shards[split]) for split in shards}),
            captioned=captioned,
            **self.statistics(sums),
            shards=CachedSplits(**shards),
        )
        manifest.write(self.folder / MANIFEST)
        return manifest


class LatentSums:
    """Float64 sums that give the mean and variance of posterior samples z, and the correlation of their channels.

    E[z] = E[mean], E[z^2] = E[mean^2 + std^2], per channel, over images, views and places. Off the diagonal,
    E[z z^T] = E[mean mean^T].
    """

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, np.zeros(1), np.zeros(1)  # sums of z and z^2: [1] at first, then [C]
        self.products: np.ndarray | None = np.zeros((1, 1))  # then [C, C]; None: of shards that did not keep them

    def add(self, moments: np.ndarray) -> None:
        values = moments.astype(np.float64)
        whole = np.issubdtype(moments.dtype, np.integer)  # codes, which have no deviation
        mean, std = (values, 0 * values) if whole else np.split(values, 2, axis=2)  # [n, views, C, h, w] each
        self.count += mean.size // mean.shape[2]
        self.first = self.first + mean.sum(axis=(0, 1, 3, 4))
        self.second = self.second + (mean**2 + std**2).sum(axis=(0, 1, 3, 4))
        if whole or mean.shape[2] > MOST_WHITENED:
            self.products = None
        if self.products is not None:
            places = np.moveaxis(mean, 2, -1).reshape(-1, mean.shape[2])
            self.products = self.products + places.T @ places

    def of_shard(self) -> Sums:
        products = {} if self.products is None else {"products": self.products.tolist()}
        return Sums(count=self.count, first=self.first.tolist(), second=self.second.tolist(), **products)

    def merge(self, other: Sums) -> None:
        self.count += other.count
        self.first = self.first + np.array(other.first)
        self.second = self.second + np.array(other.second)
        known = self.products is not None and other.products is not None
        self.products = self.products + np.array(other.products) if known else None

    def statistics(self, *, whiten: bool) -> dict[str, Any]:
        """mean and std, [C] each, and the whitening, [C, C], or None.

        Raises:
            ValueError: for a channel that is the same in all latents or, with whiten, follows from the others.
        """
        mean = self.first / self.count
        variance = self.second / self.count - mean**2
        if not (variance > 0).all():
            dead = np.flatnonzero(~(variance > 0)).tolist()
            raise ValueError(f"channels {dead} of the latents do not vary: train the autoencoder longer")
        plain = {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}
        if not whiten:
            return plain | {"whitening": None}
        if self.products is None:
            raise ValueError(
                "whiten=true wants sums over pairs of channels, which shards of before, and of more than "
                f"{MOST_WHITENED} channels, do not have: choose another run=, or pass whiten=false"
            )
        covariance = self.products / self.count - np.outer(mean, mean)
        np.fill_diagonal(covariance, variance)
        values, vectors = np.linalg.eigh(covariance / np.sqrt(np.outer(variance, variance)))
        if values[0] < LEAST_SHARE:
            raise ValueError(
                f"the latents' channels follow from each other, to less than {LEAST_SHARE:g} of their variance: pass "
                "whiten=false, for which these shards do as well, or train an autoencoder of fewer latent_channels"
            )
        whitening = (vectors / np.sqrt(values)) @ vectors.T
        rounded = ((whitening + whitening.T) / 2).astype(np.float32)  # as it is used; the same on other processors
        return plain | {"whitening": rounded.tolist()}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
