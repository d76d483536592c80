"""Loaders of images: the datamodule of stage 1, and one pass in order for validation and evaluation."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.order import Order, Stretches
from ldm.data.sources import Sample, Source, Split

PART_SIZE = 128  # images that a worker reads in one go, where the source does not decide
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
        else:  # a rank without any would make the others wait for its metrics for ever
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
    """Batches (image [B, 3, R, R] uint8, label [B]) of a split, each image once over all ranks; `view` None is the
    source's centre view."""
    _ = source.class_names  # lists the files, and says what it leaves out, once here and not in each worker
    views = _Views(source, split, rank, world, view or source.center_view)
    return DataLoader(views, batch_size=batch_size, num_workers=num_workers)


class ImageData(LightningDataModule):
    """Training and validation images; training goes on where the module's count of images stands."""

    def __init__(self, *, source: Source, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.source, self.batch_size, self.num_workers, self.seed = source, batch_size, num_workers, seed

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
        return Stretches(self.source.training_loader(order, self.num_workers), int(trainer.limit_train_batches))

    def val_dataloader(self) -> "DataLoader[Any]":
        trainer = self.trainer
        assert trainer is not None
        return in_order(self.source, "val", self.batch_size, self.num_workers, trainer.global_rank, trainer.world_size)
