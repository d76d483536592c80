"""The two stages' data: batches of images, and of latents, that begin where a run stands."""

import logging
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ldm.data.cache_reader import CachedMoments, LatentCache, PairedNoise
from ldm.data.image_data import in_order
from ldm.data.order import Order, OrderedBatches, Stretches
from ldm.data.sources import Source
from ldm.diffusion.coupling import Coupling

log = logging.getLogger(__name__)


def order_from_here(trainer: Trainer, seed: int, batch_size: int) -> Order:
    """This rank's order of the training data, from the module's count of images on: a resumed run goes on there."""
    return Order(
        seed=seed,
        batch_size=batch_size,
        rank=trainer.global_rank,
        world=trainer.world_size,
        images_seen=trainer.lightning_module.images_seen,  # type: ignore[arg-type]
    )


class ImageData(LightningDataModule):
    """Training images, shuffled and augmented; validation images in order.

    Args:
        source:      of the images.
        batch_size:  images of a batch of one rank.
        num_workers: processes of a rank that read and decode; 0 = the training process does.
        seed:        of the order and of the augmentation.
    """

    def __init__(self, *, source: Source, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        _ = source.class_names  # lists the files: a folder that is not there is refused before the run begins
        self.source, self.batch_size, self.num_workers, self.seed = source, batch_size, num_workers, seed

    def train_dataloader(self) -> Stretches:
        trainer = self.trainer
        assert trainer is not None
        order = order_from_here(trainer, self.seed, self.batch_size)
        return Stretches(self.source.training_loader(order, self.num_workers), int(trainer.limit_train_batches))

    def val_dataloader(self) -> "DataLoader[Any]":
        trainer = self.trainer
        assert trainer is not None
        return in_order(self.source, "val", self.batch_size, self.num_workers, trainer.global_rank, trainer.world_size)


class LatentData(LightningDataModule):
    """Training and validation moments.

    Args:
        cache:       of the moments.
        batch_size:  latents of a batch of one rank.
        num_workers: processes of a rank that read; 0 = the training process does.
        seed:        of the order, and of the noise that is paired with the latents here.
        coupling:    pairs noise with latents: here where it is `ahead` of the training step.
    """

    def __init__(self, *, cache: LatentCache, batch_size: int, num_workers: int, seed: int, coupling: Coupling) -> None:
        super().__init__()
        self.noise = PairedNoise(coupling, cache.stats, seed) if coupling.ahead else None
        self.cache, self.batch_size, self.num_workers, self.seed = cache, batch_size, num_workers, seed

    def train_dataloader(self) -> Stretches:
        trainer = self.trainer
        assert trainer is not None
        moments = CachedMoments(self.cache, "train", self.noise)
        batches = OrderedBatches(order_from_here(trainer, self.seed, self.batch_size), len(moments))
        return Stretches(self._loader(moments, batches), int(trainer.limit_train_batches))

    def val_dataloader(self) -> "DataLoader[Any]":
        trainer = self.trainer
        assert trainer is not None
        moments = CachedMoments(self.cache, "val")
        if len(moments) < trainer.world_size:
            raise ValueError(f"{len(moments)} validation latents can't be shared by {trainer.world_size} ranks")
        left_out = len(moments) % trainer.world_size  # else ranks with a batch more would wait for the others for ever
        if left_out and trainer.is_global_zero:
            log.info("%d of %d validation latents are left out, for equal shares", left_out, len(moments))
        share = range(trainer.global_rank, len(moments) - left_out, trainer.world_size)
        batches = [[(0, i) for i in share[j : j + self.batch_size]] for j in range(0, len(share), self.batch_size)]
        return self._loader(moments, batches)

    def _loader(self, moments: CachedMoments, batches: Any) -> "DataLoader[Any]":
        return DataLoader(
            moments,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),  # else a copy to the GPU waits for all that is queued there
        )


def _unchanged(batch: Any) -> Any:
    """The batch, for `__getitems__` has collated it already."""
    return batch
