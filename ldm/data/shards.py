"""Images in webdataset shards: tars of KEY.jpg (or png, webp) and KEY.cls, as files, by URLs or through pipes."""

import logging
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.listing import EXTENSIONS
from ldm.data.order import Order
from ldm.data.sources import Part, Sample, Source, Split, digest
from ldm.runtime.files import atomic_write, read_json, write_json

log = logging.getLogger(__name__)

INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class Shards(Source):
    """webdataset tars: a folder of `ldm pack`'s, or other people's by URLs.

    Args:
        root:           a folder that `ldm pack` made, whose index.json names classes and splits; None = see urls.
        urls:           training shards, with braces: "data/{000000..000099}.tar", "https://...", "pipe:aws s3 cp ...".
        val_urls:       validation shards; required with urls.
        num_classes:    number of classes of the .cls members; required with urls; 1 = unlabelled images.
        shuffle_buffer: images that a worker holds and draws from; the order of the shards is shuffled, too.
    """

    root: str | None = None
    urls: str | None = None
    val_urls: str | None = None
    num_classes: int | None = None
    shuffle_buffer: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.root is None) == (self.urls is None):
            raise ValueError("data=shards needs either data.root=FOLDER (made by `ldm pack`) or data.urls=...")
        if self.urls is not None and (self.val_urls is None or self.num_classes is None):
            raise ValueError("data.urls also needs data.val_urls=... and data.num_classes=N (1 if unlabelled)")

    @cached_property
    def _index(self) -> dict[str, Any]:
        if self.root is None:
            return {"class_names": [str(i) for i in range(self.num_classes or 1)]}
        if not (Path(self.root) / INDEX).exists():
            raise ValueError(
                f"data.root={self.root} holds no {INDEX}: run `ldm pack`, or name foreign shards in data.urls"
            )
        return read_json(Path(self.root) / INDEX)

    @property
    def class_names(self) -> list[str]:
        return self._index["class_names"]

    def shard_urls(self, split: Split) -> list[str]:
        """The split's shards, in order."""
        if self.root is not None:
            return [str(Path(self.root) / shard["name"]) for shard in self._index["shards"][split]]
        return wds.shardlists.expand_urls(self.urls if split == "train" else self.val_urls)

    def shard_counts(self, split: Split) -> list[int]:
        """Images in each of the split's shards; empty for urls."""
        return [shard["count"] for shard in self._index["shards"][split]] if self.root is not None else []

    def places(self, split: Split) -> list[str]:
        return self.shard_urls(split)

    def parts(self, split: Split, size: int) -> list[Part]:  # noqa: ARG002
        """One part for each shard, whatever `size` is."""

        def part(number: int, url: str) -> Part:
            # a file may move without a change of its content; anything else is known by its URL, or command, alone
            content = digest(Path(url).name, Path(url).stat().st_size) if os.path.isfile(url) else digest(url)
            return Part(f"{split}-{number:06d}", content, lambda: self.samples(url))

        return [part(i, url) for i, url in enumerate(self.shard_urls(split))]

    def samples(self, url: str) -> Iterator[Sample]:
        """Read one shard in order."""
        try:
            with wds.gopen(url) as stream:  # webdataset's loop would leave it open until it is collected as garbage
                files = wds.tariterators.tar_file_expander([{"url": url, "stream": stream}])
                for member in wds.tariterators.group_by_keys(files):
                    yield self._sample(url, member)
        except (OSError, EOFError, wds.tariterators.tarfile.TarError) as error:
            raise ValueError(f"cannot read shard {url}: {error.args[0] if error.args else error}") from None

    def _sample(self, url: str, member: dict[str, Any]) -> Sample:
        key = f"{url}:{member['__key__']}"
        extension = next((e for e in EXTENSIONS if e in member), None)
        if extension is None:
            raise ValueError(f"{key} holds no image ({', '.join(EXTENSIONS)})")
        if "cls" not in member and len(self.class_names) > 1:
            raise ValueError(f"{key} has no .cls member: pass data.num_classes=1 for unlabelled images")
        label = int(member["cls"]) if len(self.class_names) > 1 else 0
        if not 0 <= label < len(self.class_names):
            raise ValueError(f"{key} has the label {label}, outside 0 ... {len(self.class_names) - 1}")
        return Sample(key, member[extension], extension, label)

    def training_loader(self, order: Order, num_workers: int) -> "DataLoader[Any]":
        workers, shards, stream = max(1, num_workers), self.shard_urls("train"), _ShardStream(self, order)
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
        return DataLoader(stream, batch_size=order.batch_size, num_workers=num_workers)


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
            for sample in self.shuffled(epoch, consumer, consumers):
                if skip > 0 and self.source.on_error == "error":
                    skip -= 1
                    continue
                image = self.source.decode(sample)
                if image is not None and skip > 0:
                    skip -= 1
                elif image is not None:
                    rng = np.random.default_rng((order.seed, epoch, zlib.crc32(sample.key.encode())))
                    yield self.source.training_view(image, rng), sample.label
            epoch += 1

    def dealt(self, epoch: int, consumer: int, consumers: int) -> Sequence[int]:
        """Indices of the shards that this consumer reads in an epoch, in order."""
        count = len(self.source.shard_urls("train"))
        return np.random.default_rng((self.order.seed, epoch)).permutation(count)[consumer::consumers].tolist()

    def epoch_length(self, epoch: int, consumer: int, consumers: int) -> int:
        """Number of images that this consumer is dealt in an epoch; 0 where no index.json counts them."""
        counts = self.source.shard_counts("train")
        return sum(counts[i] for i in self.dealt(epoch, consumer, consumers)) if counts else 0

    def shuffled(self, epoch: int, consumer: int, consumers: int) -> Iterable[Sample]:
        """The images of the consumer's shards, shuffled within a buffer."""
        urls = self.source.shard_urls("train")
        indices = self.dealt(epoch, consumer, consumers)
        samples = (sample for i in indices for sample in self.source.samples(urls[i]))
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
        ValueError: if the folder has been packed before.
    """
    if (folder / INDEX).exists():
        raise ValueError(f"{folder} is packed already, and may be in use: choose another run=, or delete it")
    shards: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "val"):
        shards[split] = []
        for part in progress(source.parts(split, shard_size)):
            name, count = f"{part.name}.tar", 0
            with atomic_write(folder / name) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for sample in part.samples():
                    if source.decode(sample) is None:
                        continue
                    member = {"__key__": f"{part.name}-{count:06d}", sample.extension: sample.data}
                    tar.write(member | {"cls": str(sample.label).encode()})
                    count += 1
            shards[split].append({"name": name, "count": count})
    write_json(folder / INDEX, {"class_names": source.class_names, "shards": shards})
