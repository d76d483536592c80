"""Images in webdataset shards, as files, by URLs or through pipes: tars of KEY.jpg (or png, webp), KEY.cls and perhaps
KEY.txt, a caption."""

import logging
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.captions import check_caption
from ldm.data.formats import PackedShard, PackedSplits, ShardIndex
from ldm.data.listing import EXTENSIONS
from ldm.data.order import Order
from ldm.data.samples import Part, Sample, Split, digest
from ldm.data.sources import Source
from ldm.data.tars import INDEX, DamagedTarError, Shard, members
from ldm.data.workers import loader
from ldm.runtime.files import atomic_write, sha256
from ldm.runtime.ranges import Count

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shards(Source):
    """webdataset tars: a folder of `ldm pack`'s, or other people's by URLs.

    Args:
        root:           a folder that `ldm pack` made, whose index.json names classes and splits; None = see urls.
        urls:           training shards, with braces: "data/{000000..000099}.tar", "https://...", "pipe:aws s3 cp ...".
        val_urls:       validation shards; required with urls.
        num_classes:    number of classes of the .cls members; required with urls; 1 = unlabelled images.
        shuffle_buffer: images that a worker holds and draws from; the order of the shards is shuffled, too.
        verify:         of root's shards, "size" compares sizes with the index, "full" checksums, too; counts are
                        compared whenever a shard is read.
    """

    root: str | None = None
    urls: str | None = None
    val_urls: str | None = None
    num_classes: Count | None = None
    shuffle_buffer: Count = 2000
    verify: Literal["size", "full"] = "size"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.root is None) == (self.urls is None):
            raise ValueError("data=shards needs either data.root=FOLDER (made by `ldm pack`) or data.urls=...")
        if self.urls is not None and (self.val_urls is None or self.num_classes is None):
            raise ValueError("data.urls also needs data.val_urls=... and data.num_classes=N (1 if unlabelled)")

    @cached_property
    def _index(self) -> ShardIndex | None:
        if self.root is None:
            return None
        if not (Path(self.root) / INDEX).exists():
            raise ValueError(
                f"data.root={self.root} holds no {INDEX}: run `ldm pack`, or name foreign shards in data.urls"
            )
        index = ShardIndex.read(Path(self.root) / INDEX)
        for shard in self._listed(index, "train") + self._listed(index, "val"):
            shard.check(full=self.verify == "full")
        return index

    def _listed(self, index: ShardIndex, split: Split) -> list[Shard]:
        return [Shard(path=Path(str(self.root), each.name), listed=each) for each in getattr(index.shards, split)]

    @cached_property
    def class_names(self) -> list[str]:
        if self._index is not None:
            return self._index.class_names
        return [str(i) for i in range(self.num_classes or 1)]

    def shards(self, split: Split) -> list[Shard]:
        """The split's shards, in order."""
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[Split, list[Shard]]:
        if self._index is not None:
            return {"train": self._listed(self._index, "train"), "val": self._listed(self._index, "val")}
        expand = wds.shardlists.expand_urls
        return {
            "train": [Shard(url=url) for url in expand(self.urls)],
            "val": [Shard(url=url) for url in expand(self.val_urls)],
        }

    def places(self, split: Split) -> list[str]:
        return [str(shard) for shard in self.shards(split)]

    def parts(self, split: Split, size: int) -> list[Part]:  # noqa: ARG002
        """One part for each shard, whatever `size` is."""

        def part(number: int, shard: Shard) -> Part:
            return Part(
                name=f"{split}-{number:06d}",
                images=digest(shard.name()),
                files=shard.state,
                samples=lambda: self.samples(shard),
            )

        return [part(i, shard) for i, shard in enumerate(self.shards(split))]

    def samples(self, shard: Shard) -> Iterator[Sample]:
        """Read one shard in order.

        Raises:
            ValueError: if it can't be read, ends early or does not hold as many images as the index says; with
                on_error=skip, what can't be read is left out and counted.
        """
        number = 0
        try:
            with shard.open() as stream:
                for member in members(stream):
                    number += 1
                    yield self._sample(str(shard), member)
            if shard.count is not None and number != shard.count:
                raise DamagedTarError(f"it holds {number} images, {INDEX} says {shard.count}")
        except (OSError, EOFError, DamagedTarError) as error:
            problem = f"shard {shard} is damaged: {error}"
            if self.on_error == "error":
                raise ValueError(f"{problem}. Copy it anew, or pass data.on_error=skip") from None
            self.skip(problem)
        if number == 0 and self.on_error == "error":
            raise ValueError(f"shard {shard} holds no image: remove it from the list, or pass data.on_error=skip")

    def _sample(self, url: str, member: dict[str, Any]) -> Sample:
        key = f"{url}:{member['__key__']}"
        extension = next((e for e in EXTENSIONS if e in member), None)
        if extension is None:
            raise ValueError(f"{key} holds no image ({', '.join(EXTENSIONS)})")
        if "cls" not in member and len(self.class_names) > 1:
            raise ValueError(f"{key} has no .cls member: pass data.num_classes=1 for unlabelled images")
        text = member["cls"].strip() if len(self.class_names) > 1 else b"0"
        if not text.isdigit():
            raise ValueError(f"{key} has the label {text[:20]!r}, which is no whole number from 0")
        label = int(text[:10])
        if not 0 <= label < len(self.class_names):
            raise ValueError(f"{key} has the label {label}, outside 0 ... {len(self.class_names) - 1}")
        return Sample(key, member[extension], extension, label, caption=self._caption(key, member.get("txt", b"")))

    def _caption(self, key: str, data: bytes) -> str:
        try:
            return check_caption(data.decode(), f"{key}.txt")
        except ValueError as error:
            problem = f"{key}.txt is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            if self.on_error == "error":
                raise ValueError(f"{problem} (data.on_error=skip leaves such captions out)") from None
            self.skip(problem)
            return ""

    def training_loader(self, order: Order, num_workers: int) -> "DataLoader[Any]":
        workers, shards, stream = max(1, num_workers), self.shards("train"), _ShardStream(self, order)
        consumers = order.world * workers
        if len(shards) < consumers:
            raise ValueError(
                f"{len(shards)} training shards cannot feed {order.world} ranks x {workers} workers: "
                "lower num_workers, or pack smaller shards"
            )
        dealt = [stream.epoch_length(0, consumer, consumers) for consumer in range(consumers)]
        if min(dealt) < max(dealt) and order.rank == 0:
            log.info("%d ranks x %d workers are dealt shards of %d to %d images each: their epochs differ in length",
                     order.world, workers, min(dealt), max(dealt))  # fmt: skip
        return loader(stream, num_workers, batch_size=order.batch_size)


class _ShardStream(IterableDataset[tuple[Tensor, int]]):
    """One consumer's endless stream; a consumer is one worker of one rank.

    Each epoch deals the shuffled shards to the consumers. Worker w of W makes the batches start + w, start + w + W, ...
    of its rank. A resumed run skips the epochs that are complete, by the index's counts, and then reads the images of
    this epoch that were seen before and drops them without decoding, so that it goes on with the next one.
    """

    def __init__(self, source: Shards, order: Order) -> None:
        self.source, self.order = source, order

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        order, info = self.order, get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        start = order.images_seen // (order.batch_size * order.world)  # batches that each rank has seen
        lane = (start + worker) % workers  # torch asks worker 0 first, also after a resume
        skip = (start // workers + (lane < start % workers)) * order.batch_size
        consumer, consumers = order.rank * workers + lane, order.world * workers
        epoch = 0
        while self.source.on_error == "error" and 0 < self.epoch_length(epoch, consumer, consumers) <= skip:
            skip -= self.epoch_length(epoch, consumer, consumers)  # an epoch of known length is skipped unread
            epoch += 1
        while True:
            decoded = 0
            for sample in self.shuffled(epoch, consumer, consumers):
                if skip > 0 and self.source.on_error == "error":
                    skip -= 1
                    decoded += 1
                    continue
                image = self.source.decode(sample)
                decoded += image is not None
                if image is not None and skip > 0:
                    skip -= 1
                elif image is not None:
                    rng = np.random.default_rng((order.seed, epoch, zlib.crc32(sample.key.encode())))
                    yield self.source.training_view(image, rng), sample.label
            if decoded == 0:  # else the next epoch would look for one for ever
                names = ", ".join(str(self.source.shards("train")[i]) for i in self.dealt(epoch, consumer, consumers))
                raise ValueError(f"no image can be decoded in {names[:200]}: no training without any")
            epoch += 1

    def dealt(self, epoch: int, consumer: int, consumers: int) -> Sequence[int]:
        """Indices of the shards that this consumer reads in an epoch, in order."""
        count = len(self.source.shards("train"))
        return np.random.default_rng((self.order.seed, epoch)).permutation(count)[consumer::consumers].tolist()

    def epoch_length(self, epoch: int, consumer: int, consumers: int) -> int:
        """Number of images that this consumer is dealt in an epoch; 0 where no index.json counts them."""
        shards = self.source.shards("train")
        return sum(shards[i].count or 0 for i in self.dealt(epoch, consumer, consumers))

    def shuffled(self, epoch: int, consumer: int, consumers: int) -> Iterable[Sample]:
        """The images of the consumer's shards, shuffled within a buffer."""
        shards = self.source.shards("train")
        indices = self.dealt(epoch, consumer, consumers)
        samples = (sample for i in indices for sample in self.source.samples(shards[i]))
        buffer = self.source.shuffle_buffer
        rng = random.Random(f"{self.order.seed} {epoch} {consumer}")
        return wds.filters.shuffle(buffer, initial=buffer, rng=rng)(samples)


def pack(source: Source, folder: Path, shard_size: int, progress: Callable[[list[Part]], Iterable[Part]]) -> None:
    """Write a source's splits as shards: the images' files as they are, and index.json last.

    Args:
        source:     of the images; those that can't be decoded are left out.
        folder:     where the shards are written.
        shard_size: images a shard at most.
        progress:   iterates over a split's parts, and may show how far it is.

    Raises:
        ValueError: if the folder has been packed before, or no image of a split can be decoded.
    """
    if (folder / INDEX).exists():
        raise ValueError(f"{folder} is packed already, and may be in use: choose another run=, or delete it")
    for split in ("train", "val"):
        for unfinished in folder.glob(f"{split}-[0-9]*.tar"):  # of a call that was killed, perhaps of another size
            unfinished.unlink()
    shards: dict[Split, list[PackedShard]] = {"train": [], "val": []}
    for split in shards:
        for part in progress(source.parts(split, shard_size)):
            name, count = f"{part.name}.tar", 0
            with atomic_write(folder / name) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for sample in part.samples():
                    if source.decode(sample) is None:
                        continue
                    member = {"__key__": f"{part.name}-{count:06d}", sample.extension: sample.data}
                    member |= {"txt": sample.caption.encode()} if sample.caption else {}
                    tar.write(member | {"cls": str(sample.label).encode()})
                    count += 1
            if count == 0:
                (folder / name).unlink()
                continue
            file_size, checksum = (folder / name).stat().st_size, sha256(folder / name)
            shards[split].append(PackedShard(name=name, count=count, bytes=file_size, sha256=checksum))
        if not shards[split]:
            raise ValueError(f"no image of the {split} split can be decoded: there is nothing to pack")
    splits = PackedSplits(train=shards["train"], val=shards["val"])
    ShardIndex(format=2, class_names=source.class_names, shards=splits).write(folder / INDEX)
