"""Reads the latent cache: blocks are mapped into memory, images shuffled over all shards, mirror images alternate."""

import bisect
import contextlib
import math
import resource
import sys
import tarfile
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.formats import MANIFEST, CachedShard, Manifest, Verified
from ldm.data.order import Key
from ldm.data.samples import Split
from ldm.diffusion.coupling import Coupling
from ldm.diffusion.noise import IndexedNoise
from ldm.latents import LatentStats
from ldm.runtime.files import existing_folder, sha256

VERIFIED = "verified.json"  # each shard's state when its checksum was last compared and found right
Verify = Literal["once", "full", "size"]
ANEW = "remove it, and run the same `ldm cache-latents` again"
Batch = tuple[Tensor, ...]  # moments [B, 2C, h, w] fp16, labels [B], and perhaps noise paired with them [B, C, h, w]


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
        self.stats = LatentStats(torch.tensor(self.manifest.mean), torch.tensor(self.manifest.std))
        self.class_names = self.manifest.class_names
        self.latent_shape = (self.manifest.shape[0] // 2, *self.manifest.shape[1:])  # C, h, w

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
                check_values(path, block.moments)
        return state


class _Block(NamedTuple):
    start: int  # its first image's index in the shard
    moments: np.ndarray  # [n, views, 2C, h, w] fp16, memory-mapped
    labels: np.ndarray  # [n]


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
    """A split's moments, a batch at a time: `__getitems__(keys)` -> (moments [B, 2C, h, w] fp16, labels [B]).

    The view alternates with the epoch: each image is mirrored in every other epoch, and half of them are in each.
    With `noise`, a batch has a third tensor: the noise paired with it. Of a teacher's pairs, it always has.
    """

    def __init__(self, cache: LatentCache, split: Split, noise: PairedNoise | None = None) -> None:
        manifest, pairs = cache.manifest, cache.manifest.pairs
        taught = None if pairs is None else TaughtNoise(pairs.seed, 0 if split == "train" else pairs.train)
        self.noise = taught or noise
        shards: list[CachedShard] = getattr(manifest.shards, split)
        self.paths = [cache.folder / shard.name for shard in shards]
        self.ends = list(accumulate(shard.count for shard in shards))
        self.manifest, self.shape, self.views = manifest, tuple(manifest.shape), manifest.views
        self.blocks: dict[int, list[_Block]] = {}
        _allow_files(len(manifest.shards.train) + len(manifest.shards.val))  # a process may map both splits

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitems__(self, keys: list[Key]) -> Batch:
        moments, labels = np.empty((len(keys), *self.shape), np.float16), np.empty(len(keys), np.int64)
        for i, (epoch, index) in enumerate(keys):
            shard = bisect.bisect_right(self.ends, index)
            row = index - (self.ends[shard - 1] if shard else 0)
            if shard not in self.blocks:
                count = self.ends[shard] - (self.ends[shard - 1] if shard else 0)
                self.blocks[shard] = open_shard(self.paths[shard], count, self.manifest)
            blocks = self.blocks[shard]
            block = blocks[bisect.bisect_right(blocks, row, key=lambda b: b.start) - 1]
            moments[i] = block.moments[row - block.start, (epoch + index) % self.views]
            labels[i] = block.labels[row - block.start]
        batch = torch.from_numpy(moments), torch.from_numpy(labels)
        return batch if self.noise is None else (*batch, self.noise(*batch, keys))


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


def open_shard(path: Path, count: int, manifest: Manifest) -> list[_Block]:
    """A shard's blocks, mapped into memory.

    Raises:
        ValueError: naming the shard, if they are not what the manifest says, whatever their checksum.
    """
    try:
        blocks = _open_blocks(path)
        for block in blocks:
            _check_block(block, manifest)
        if (held := sum(len(block.labels) for block in blocks)) != count:
            raise ValueError(f"it holds {held} images, the manifest says {count}")
    except (ValueError, OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise ValueError(f"{path} is no shard of this cache: {' '.join(str(error).split())}: {ANEW}") from None
    return blocks


def _check_block(block: _Block, manifest: Manifest) -> None:
    moments, labels, classes = block.moments, block.labels, len(manifest.class_names)
    wanted = (len(labels), manifest.views, *manifest.shape)
    if moments.dtype != np.dtype("<f2") or moments.shape != wanted:
        raise ValueError(f"moments are {moments.dtype} {list(moments.shape)}, not float16 {list(wanted)}")
    if labels.dtype != np.dtype("<i8") or labels.ndim != 1:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, not int64 [n]")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, and there are {classes} classes")


def check_values(path: Path, moments: np.ndarray) -> None:
    """Each moment is looked at when its shard's checksum is compared, which reads the file anyway.

    By the bits of float16, of which numpy compares integers much faster than the numbers: all bits of the exponent are
    set in what is not finite, and the sign's in what is negative, -0 alone excepted.

    Raises:
        ValueError: naming the shard, if a mean or a std, [n, views, 2C, h, w] together, is not finite, or a std is
            negative.
    """
    bits = moments.view(np.int16)
    if np.any(bits >= 0x7C00) or np.any((bits >= -0x400) & (bits < 0)):
        raise ValueError(f"{path} holds moments that are not finite: {ANEW}")
    std = bits[:, :, bits.shape[2] // 2 :]
    if np.any((std < 0) & (std > -0x8000)):
        raise ValueError(f"{path} holds standard deviations that are negative: {ANEW}")


def _open_blocks(path: Path) -> list[_Block]:
    """A shard's blocks, mapped into memory: in a tar, members lie contiguous and uncompressed.

    A shard is mapped once and not once for each block, because every map holds a file descriptor.
    """
    arrays: dict[str, np.ndarray] = {}
    mapped = np.memmap(path, np.uint8, "r")
    with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
        for member in tar:
            file.seek(member.offset_data)
            version, header = (
                np.lib.format.read_magic(file),
                {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                },
            )
            if version not in header:
                raise ValueError(f"{member.name} has npy's version {version}, not 1.0 or 2.0")
            shape, fortran, dtype = header[version](file)
            if fortran or dtype.hasobject:  # of pointers, the file's bytes would be followed
                raise ValueError(f"{member.name} is {'in Fortran order' if fortran else 'of Python objects'}")
            if file.tell() + dtype.itemsize * math.prod(shape) > member.offset_data + member.size:
                raise ValueError(f"{member.name} ends early")
            arrays[member.name] = np.ndarray(shape, dtype, mapped.data, file.tell())
    blocks, start = [], 0
    for name in sorted(n for n in arrays if n.endswith(".moments.npy")):
        labels = np.array(arrays[name.replace(".moments.", ".labels.")])
        blocks.append(_Block(start, arrays[name], labels))
        start += len(labels)
    return blocks
