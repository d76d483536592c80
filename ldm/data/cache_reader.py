"""Reading the latent cache: memory-mapped blocks, a global shuffle, mirrors by turns."""

import bisect
import contextlib
import logging
import resource
import sys
import tarfile
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.cache_writer import FORMAT, MANIFEST
from ldm.data.order import Key, Order, OrderedBatches, Stretches
from ldm.data.sources import Split
from ldm.diffusion.coupling import Coupling
from ldm.latents import LatentStats
from ldm.runtime.files import existing_folder, read_json, sha256, write_json

log = logging.getLogger(__name__)

VERIFIED = "verified.json"  # what a shard was when its checksum was found right
Verify = Literal["once", "full", "size"]
Batch = tuple[Tensor, ...]  # moments [B, 2C, h, w] fp16, labels [B], perhaps noise paired with them [B, C, h, w]


class LatentCache:
    """A verified cache.

    Args:
        folder: where `ldm cache-latents` wrote it.
        verify: "full" checks every shard's checksum; "once" the same, but for files that an earlier check has found
            right and that have not changed since, by their times; "size" only sizes. Each rank does so.

    Raises:
        ValueError: if the manifest is missing or of another format, or a shard is missing or damaged.
    """

    def __init__(self, folder: str, verify: Verify) -> None:
        self.folder = existing_folder(folder, "latents")
        if not (self.folder / MANIFEST).exists():
            raise ValueError(f"latents={folder} holds no {MANIFEST}: run `ldm cache-latents` to its end first")
        if verify not in ("once", "full", "size"):
            raise ValueError(f"verify must be once, full or size, not {verify!r}")
        self.manifest = read_json(self.folder / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{folder} has the cache format {self.manifest.get('format')}; this code reads {FORMAT}")
        self._verify(self.manifest["shards"]["train"] + self.manifest["shards"]["val"], verify)
        self.stats = LatentStats(torch.tensor(self.manifest["mean"]), torch.tensor(self.manifest["std"]))
        self.class_names: list[str] = self.manifest["class_names"]
        self.latent_shape = (self.manifest["shape"][0] // 2, *self.manifest["shape"][1:])  # C, h, w

    def _verify(self, shards: list[dict[str, Any]], verify: Verify) -> None:
        file, known = self.folder / VERIFIED, {}
        if verify == "once":
            with contextlib.suppress(ValueError, OSError):  # missing or damaged: as if nothing had been checked
                known = dict(read_json(file))
        found = {shard["name"]: self._check(shard, verify, known.get(shard["name"])) for shard in shards}
        if verify != "size" and found != known:
            with contextlib.suppress(OSError):  # somebody else's folder: then each start checks
                write_json(file, found)

    def _check(self, shard: dict[str, Any], verify: Verify, known: list[Any] | None) -> list[Any]:
        """What tells this file, unlike a copy of it, from others; ValueError if it is missing or damaged."""
        path, fix = self.folder / shard["name"], "run the same `ldm cache-latents` again to mend it"
        if not path.exists():
            raise ValueError(f"{path}, which the manifest lists, is missing: {fix}")
        state = path.stat()
        if state.st_size != shard["bytes"]:
            raise ValueError(f"{path} has {state.st_size} bytes, the manifest says {shard['bytes']}: {fix}")
        found = [shard["sha256"], state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
        if verify != "size" and found != known and sha256(path) != shard["sha256"]:
            raise ValueError(f"{path} differs from the manifest's checksum: {fix}")
        return found


class _Block(NamedTuple):
    start: int  # index in the shard of its first image
    moments: np.ndarray  # [n, views, 2C, h, w] fp16, memory-mapped
    labels: np.ndarray  # [n]


class PairedNoise:
    """Noise for a batch, paired with its latents in the data loader: with workers, beside the step.

    It pairs with the posteriors' means, of which a draw is close to its own; and it is a function of (seed, the batch's
    first key), which no other batch of any rank has.
    """

    def __init__(self, coupling: Coupling, stats: LatentStats, seed: int) -> None:
        self.coupling, self.stats, self.seed = coupling, stats, seed

    def __call__(self, moments: Tensor, labels: Tensor, key: Key) -> Tensor:
        mean = self.stats.normalize(moments.float().chunk(2, dim=1)[0])
        drawn = np.random.default_rng((self.seed, *key)).standard_normal(tuple(mean.shape), dtype=np.float32)
        return self.coupling(mean, torch.from_numpy(drawn), labels)


class CachedMoments(Dataset[Any]):
    """A split's moments, a batch at a time: `__getitems__(keys)` -> (moments [B, 2C, h, w] fp16, labels [B]).

    The view alternates with the epoch: each image is mirrored in every other one, half of all images in each.
    `noise` adds a third tensor.
    """

    def __init__(self, cache: LatentCache, split: Split, noise: PairedNoise | None = None) -> None:
        self.noise = noise
        shards = cache.manifest["shards"][split]
        self.paths = [cache.folder / shard["name"] for shard in shards]
        self.ends = list(accumulate(shard["count"] for shard in shards))
        self.shape, self.views = tuple(cache.manifest["shape"]), cache.manifest["views"]
        self.blocks: dict[int, list[_Block]] = {}
        _allow_files(sum(len(shards) for shards in cache.manifest["shards"].values()))  # a process may map both splits

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitems__(self, keys: list[Key]) -> Batch:
        moments, labels = np.empty((len(keys), *self.shape), np.float16), np.empty(len(keys), np.int64)
        for i, (epoch, index) in enumerate(keys):
            shard = bisect.bisect_right(self.ends, index)
            row = index - (self.ends[shard - 1] if shard else 0)
            if shard not in self.blocks:
                self.blocks[shard] = _open_blocks(self.paths[shard])
            blocks = self.blocks[shard]
            block = blocks[bisect.bisect_right(blocks, row, key=lambda b: b.start) - 1]
            moments[i] = block.moments[row - block.start, (epoch + index) % self.views]
            labels[i] = block.labels[row - block.start]
        batch = torch.from_numpy(moments), torch.from_numpy(labels)
        return batch if self.noise is None else (*batch, self.noise(*batch, keys[0]))


def _allow_files(count: int) -> None:
    """Let this process, and the workers that it starts, map so many files: many systems allow 1,024 unless asked."""
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


def _open_blocks(path: Path) -> list[_Block]:
    """Map a shard's blocks: tar members lie contiguous and uncompressed. One map a shard, of which there are few: each
    map holds a file descriptor."""
    arrays: dict[str, np.ndarray] = {}
    mapped = np.memmap(path, np.uint8, "r")
    with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
        for member in tar:
            file.seek(member.offset_data)
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header[version](file)
            arrays[member.name] = np.ndarray(shape, dtype, mapped.data, file.tell())
    blocks, start = [], 0
    for name in sorted(n for n in arrays if n.endswith(".moments.npy")):
        labels = np.array(arrays[name.replace(".moments.", ".labels.")])
        blocks.append(_Block(start, arrays[name], labels))
        start += len(labels)
    return blocks


def _as_is(batch: Any) -> Any:
    return batch


class LatentData(LightningDataModule):
    """Training and validation moments; training goes on where the module's count of images stands. A coupling that
    wants to be ahead of the step is done here."""

    def __init__(self, *, cache: LatentCache, batch_size: int, num_workers: int, seed: int, coupling: Coupling) -> None:
        super().__init__()
        self.noise = PairedNoise(coupling, cache.stats, seed) if coupling.ahead else None
        self.cache, self.batch_size, self.num_workers, self.seed = cache, batch_size, num_workers, seed

    def train_dataloader(self) -> Stretches:
        trainer = self.trainer
        assert trainer is not None
        order = Order(
            seed=self.seed,
            batch_size=self.batch_size,
            rank=trainer.global_rank,
            world=trainer.world_size,
            images_seen=trainer.lightning_module.images_seen,  # type: ignore[arg-type]
        )
        moments = CachedMoments(self.cache, "train", self.noise)
        loader = self._loader(moments, OrderedBatches(order, len(moments)))
        return Stretches(loader, int(trainer.limit_train_batches))

    def val_dataloader(self) -> "DataLoader[Any]":
        trainer = self.trainer
        assert trainer is not None
        moments = CachedMoments(self.cache, "val")
        if len(moments) < trainer.world_size:
            raise ValueError(f"{len(moments)} validation latents can't be shared by {trainer.world_size} ranks")
        left_out = len(moments) % trainer.world_size  # else some ranks would have a batch more, and wait for the others
        if left_out and trainer.is_global_zero:
            log.info("%d of %d validation latents are left out, for equal shares", left_out, len(moments))
        mine = range(trainer.global_rank, len(moments) - left_out, trainer.world_size)
        batches = [[(0, i) for i in mine[j : j + self.batch_size]] for j in range(0, len(mine), self.batch_size)]
        return self._loader(moments, batches)

    def _loader(self, moments: CachedMoments, batches: Any) -> "DataLoader[Any]":
        return DataLoader(
            moments,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),  # without it the copy to the GPU waits for all that is queued there
        )
