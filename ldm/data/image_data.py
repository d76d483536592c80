"""One pass over a source's images in order, for validation and evaluation."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.samples import Sample, Split
from ldm.data.sources import Source
from ldm.data.workers import loader

PART_SIZE = 128  # images that a worker reads in one go; a source that consists of shards decides itself
View = Callable[[Image.Image], Tensor]  # -> [3, R, R] uint8


class _Views(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, source: Source, split: Split, rank: int, world: int, view: View) -> None:
        self.source, self.split, self.rank, self.world, self.view = source, split, rank, world, view

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        consumer, consumers = self.rank * workers + worker, self.world * workers
        parts = self.source.parts(self.split, PART_SIZE)
        if len(parts) >= consumers:
            samples: Iterable[Sample] = chain.from_iterable(part.samples() for part in parts[consumer::consumers])
        else:  # fewer parts than consumers: deal images instead, for the ranks would wait for ever for one without any
            samples = islice(chain.from_iterable(part.samples() for part in parts), consumer, None, consumers)
        for sample in samples:
            image = self.source.decode(sample)
            if image is not None:
                yield self.view(image), sample.label


def in_order(
    source: Source,
    split: Split,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    view: View | None = None,
) -> "DataLoader[Any]":
    """Batches (image [B, 3, R, R] uint8, label [B]) of a split, each image once over all ranks.

    Args:
        source:      of the images.
        split:       "train" or "val".
        batch_size:  images of a batch of one rank.
        num_workers: processes that read and decode; 0 = this one does.
        rank, world: this rank, counted from 0, of so many.
        view:        from a decoded image to pixels; None = the source's centre view.
    """
    _ = source.class_names  # lists the files, and says what it leaves out, once here and not in each worker
    views = _Views(source, split, rank, world, view or source.center_view)
    return loader(views, num_workers, batch_size=batch_size)
