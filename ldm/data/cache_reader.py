"""Reads the latent cache: blocks are mapped into memory, images shuffled over all shards, mirror images alternate."""

import bisect
import contextlib
import resource
import sys
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conditioning.labels import Conditioning, Kept
from ldm.data.blocks import Block, check_values, open_shard, rows_of
from ldm.data.formats import MANIFEST, CachedShard, DenseFeaturesCard, Manifest, Pairs, Verified
from ldm.data.order import Key
from ldm.data.samples import Split
from ldm.data.shard_writer import CAPTIONS, FEATURES
from ldm.diffusion.coupling import Coupling
from ldm.diffusion.noise import IndexedNoise
from ldm.latents import LatentStats
from ldm.runtime.files import existing_folder, sha256

VERIFIED = "verified.json"  # each shard's state when its checksum was last compared and found right
Verify = Literal["once", "full", "size"]


class Batch(NamedTuple):
    """Cached latents.

    moments: [B, 2C, h, w] fp16; or codes, int32 [B, 1, h, w]
    labels:  [B]
    noise:   paired with them, [B, C, h, w]; None: none is
    told:    what a condition reads beside, by its names, and FEATURES where a network is aligned with them
    """

    moments: Tensor
    labels: Tensor
    noise: Tensor | None
    told: dict[str, Tensor]


class LatentCache:
    """A cache whose shards have been checked.

    Args:
        folder: where `ldm cache-latents` wrote it.
        verify: "full" checks every shard's checksum; "once" does so for the files that have changed, by their times,
                since their checksum was last found right; "size" checks sizes alone. Each rank checks.

    Raises:
        ValueError: if the manifest is missing or of another format, or a shard is missing or damaged.
    """

    def __init__(self, folder: str, verify: Verify) -> None:
        self.folder = existing_folder(folder, "latents")
        if not (self.folder / MANIFEST).exists():
            raise ValueError(f"latents={folder} holds no {MANIFEST}: run `ldm cache-latents` to its end first")
        if verify not in ("once", "full", "size"):
            raise ValueError(f"verify must be once, full or size, not {verify!r}")
        self.manifest = Manifest.read(self.folder / MANIFEST)
        self._verify([*self.manifest.shards.train, *self.manifest.shards.val], verify)
        self.stats = LatentStats.of(self.stats_card)
        self.class_names = self.manifest.class_names
        channels, *size = self.manifest.shape
        self.latent_shape = (channels // 2 if self.codes is None else channels, *size)  # C, h, w

    @property
    def autoencoder(self) -> str:
        """The fingerprint of the weights that encoded it."""
        return self.manifest.autoencoder

    @property
    def stats_card(self) -> dict[str, Any]:
        """What normalises its latents, as `LatentStats.of` takes it."""
        return {name: getattr(self.manifest, name) for name in ("mean", "std", "whitening")}

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        return self.manifest.preprocessing

    @property
    def features(self) -> DenseFeaturesCard | None:
        """What dense features of the images it keeps; None: none."""
        return self.manifest.features

    @property
    def codes(self) -> int | None:
        """Of a cache of codes: how many there are to choose from."""
        return self.manifest.codes

    @property
    def pairs(self) -> Pairs | None:
        """Of a teacher's samples: whose they are."""
        return self.manifest.pairs

    def few(self, split: Split, conditioning: Conditioning | None = None) -> "CachedMoments":
        """A split's, in its order; of training where nothing is held out."""
        held_out = split == "val" and self.manifest.count.val > 0
        return CachedMoments(self, "val" if held_out else "train", conditioning=conditioning)

    def kept(self) -> Kept:
        """What it keeps beside its latents, for conditions."""
        manifest = self.manifest
        encoder = manifest.text_encoder
        return Kept(
            place=str(self.folder),
            captioned=manifest.captioned,
            captions=lambda: self.captions("train"),
            text_encoder=None if encoder is None else encoder.model_dump(),
            low_resolution=manifest.low_resolution,
            resolution=int((manifest.preprocessing or {}).get("resolution", 0)),
            latent_size=self.latent_shape[1],
        )

    def captions(self, split: Split) -> Iterator[str]:
        """Those of a split, in order; "" of an image without one."""
        for shard in getattr(self.manifest.shards, split):
            for block in open_shard(self.folder / shard.name, shard.count, self.manifest):
                yield from (caption.decode() for caption in rows_of(block, CAPTIONS, slice(None)).tolist())

    def _verify(self, shards: list[CachedShard], verify: Verify) -> None:
        file, known = self.folder / VERIFIED, {}
        if verify == "once":
            with contextlib.suppress(ValueError, OSError):  # missing or damaged: as if nothing had been checked
                known = Verified.read(file).shards
        states = {shard.name: self._check(shard, verify, known.get(shard.name)) for shard in shards}
        if verify != "size" and states != known:
            with contextlib.suppress(OSError):  # a folder that this user can't write: each start checks anew
                Verified(format=1, shards=states).write(file)

    def _check(self, shard: CachedShard, verify: Verify, known: list[Any] | None) -> list[Any]:
        """The file's state, which a changed file and a copy do not share; ValueError if it is missing or damaged."""
        path, fix = self.folder / shard.name, "run the same `ldm cache-latents` again to mend it"
        if not path.is_file():
            raise ValueError(f"{path}, which the manifest lists, is missing: {fix}")
        status = path.stat()
        if status.st_size != shard.bytes:
            raise ValueError(f"{path} has {status.st_size} bytes, the manifest says {shard.bytes}: {fix}")
        state = [shard.sha256, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        if verify != "size" and state != known:
            if sha256(path) != shard.sha256:
                raise ValueError(f"{path} differs from the manifest's checksum: {fix}")
            for block in open_shard(path, shard.count, self.manifest):
                check_values(path, block.moments, self.codes)
        return state


class PairedNoise:
    """Noise for a batch, paired with its latents in the data loader, whose workers do so while the GPU trains.

    The coupling pairs it with the posteriors' means, to which their samples are close. The noise is a function of
    (seed, the batch's first key), which no other batch of any rank has.
    """

    def __init__(self, coupling: Coupling, stats: LatentStats, seed: int) -> None:
        self.coupling, self.stats, self.seed = coupling, stats, seed

    def __call__(self, moments: Tensor, labels: Tensor, keys: list[Key]) -> Tensor:
        mean = self.stats.normalize(moments.float().chunk(2, dim=1)[0])
        drawn = np.random.default_rng((self.seed, *keys[0])).standard_normal(tuple(mean.shape), dtype=np.float32)
        return self.coupling(mean, torch.from_numpy(drawn), labels)


class TaughtNoise:
    """The noise that a teacher's samples were made from: of a split whose first sample has the index `first`."""

    def __init__(self, seed: int, first: int) -> None:
        self.seed, self.first = seed, first

    def __call__(self, moments: Tensor, labels: Tensor, keys: list[Key]) -> Tensor:  # noqa: ARG002
        indices = [self.first + index for _, index in keys]
        return IndexedNoise(self.seed, indices).draw((moments.shape[1] // 2, *moments.shape[2:]))


class CachedMoments(Dataset[Any]):
    """A split's moments, a batch at a time: `__getitems__(keys)` -> `Batch`.

    The view alternates with the epoch: each image is mirrored in every other epoch, and half of them are in each.
    Args:
        cache:        whose latents
        split:        which of them
        noise:        what pairs noise with a batch; of a teacher's pairs, there always is some
        conditioning: what reads more than latents and labels, and makes tensors of it, in the data loader's workers
        aligned:      whether batches have the images' dense features; of a mirrored view, the mirrored ones
    """

    def __init__(
        self,
        cache: LatentCache,
        split: Split,
        noise: PairedNoise | None = None,
        conditioning: Conditioning | None = None,
        aligned: bool = False,
    ) -> None:
        manifest, pairs = cache.manifest, cache.manifest.pairs
        taught = None if pairs is None else TaughtNoise(pairs.seed, 0 if split == "train" else pairs.train)
        self.noise, self.conditioning = taught or noise, conditioning or Conditioning()
        self.reads = (*self.conditioning.reads, *[FEATURES] * aligned)
        shards: list[CachedShard] = getattr(manifest.shards, split)
        self.paths = [cache.folder / shard.name for shard in shards]
        self.ends = list(accumulate(shard.count for shard in shards))
        self.manifest, self.shape, self.views = manifest, tuple(manifest.shape), manifest.views
        self.blocks: dict[int, list[Block]] = {}
        _allow_files(len(manifest.shards.train) + len(manifest.shards.val))  # a process may map both splits

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitems__(self, keys: list[Key]) -> Batch:
        dtype = np.float16 if self.manifest.codes is None else np.int32  # torch does little with uint16
        moments, labels = np.empty((len(keys), *self.shape), dtype), np.empty(len(keys), np.int64)
        kept: dict[str, list[np.ndarray]] = {name: [] for name in self.reads}
        for i, (epoch, index) in enumerate(keys):
            block, row = self._at(index)
            view = (epoch + index) % self.views
            moments[i] = block.moments[row, view]
            labels[i] = block.labels[row]
            for name, rows in kept.items():
                value = rows_of(block, name, row)
                mirrored = view and name in ("low", FEATURES)  # as its latent is
                rows.append(value[..., ::-1] if mirrored else value)
        latents = torch.from_numpy(moments), torch.from_numpy(labels)
        beside = {name: np.stack(rows) for name, rows in kept.items()}
        features = {FEATURES: torch.from_numpy(beside.pop(FEATURES))} if FEATURES in beside else {}
        told = self.conditioning.tensors(beside) | features
        return Batch(*latents, None if self.noise is None else self.noise(*latents, keys), told)

    def captions(self, indices: list[int]) -> list[str]:
        """Those of images by their numbers in the split; "" of one without."""
        return [bytes(rows_of(block, CAPTIONS, row)).decode() for block, row in map(self._at, indices)]

    def _at(self, index: int) -> tuple[Block, int]:
        """The block that holds an image, and its row there."""
        shard = bisect.bisect_right(self.ends, index)
        row = index - (self.ends[shard - 1] if shard else 0)
        if shard not in self.blocks:
            count = self.ends[shard] - (self.ends[shard - 1] if shard else 0)
            self.blocks[shard] = open_shard(self.paths[shard], count, self.manifest)
        blocks = self.blocks[shard]
        block = blocks[bisect.bisect_right(blocks, row, key=lambda b: b.start) - 1]
        return block, row - block.start


def _allow_files(count: int) -> None:
    """Let this process and its workers map so many files; many systems allow 1,024 at first, and more when asked."""
    allowed, most = (
        sys.maxsize if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if most < count + 64:
        raise ValueError(
            f"the latents lie in {count} shards, and this system lets a process open {most} files: raise "
            "its hard limit (ulimit -Hn), or cache them anew with a larger shard_size="
        )
    if allowed < count + 512:  # with Lightning's, wandb's and the images' own
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 512, most), most))
