"""The two stages' data: batches of images, and of latents, that begin where a run stands."""

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ldm.conditioning.labels import Conditioning
from ldm.data.cache_reader import Batch, CachedMoments, LatentCache, PairedNoise
from ldm.data.encoded_images import EncodedImages
from ldm.data.image_data import in_order
from ldm.data.order import FirstBatch, Order, OrderedBatches, Stretches
from ldm.data.sources import IndexedSource, Source
from ldm.data.workers import loader
from ldm.diffusion.coupling import Coupling
from ldm.runtime.memory import check_batch
from ldm.training.trainer import RankBatch

log = logging.getLogger(__name__)


class TrainingData(LightningDataModule, ABC):
    """What both stages' data share.

    Args:
        batch:       images or latents of a batch of one rank; a validation takes its own number.
        num_workers: processes of a rank that read; 0 = the training process does.
        seed:        of the order, and of all that is drawn here.
        overfit:     whether the first batch is all there is: each step has it, and it validates (debug=overfit).
    """

    def __init__(self, *, batch: RankBatch, num_workers: int, seed: int, overfit: bool) -> None:
        super().__init__()
        self.batch, self.num_workers, self.seed, self.overfit = batch, num_workers, seed, overfit

    @abstractmethod
    def training_batches(self, order: Order) -> "DataLoader[Any]":
        """This rank's batches in that order, for ever."""

    @abstractmethod
    def validation_batches(self, trainer: Trainer) -> "DataLoader[Any]":
        """This rank's share of the held-out data, once."""

    def train_dataloader(self) -> Stretches:
        trainer = self.trainer
        assert trainer is not None
        length = int(trainer.limit_train_batches)
        if self.overfit:
            return Stretches(self._first_batch(trainer), length)
        return Stretches(self.training_batches(self._order(trainer, trainer.lightning_module.images_seen)), length)  # type: ignore[arg-type]

    def val_dataloader(self) -> "DataLoader[Any] | Stretches":
        trainer = self.trainer
        assert trainer is not None
        return Stretches(self._first_batch(trainer), 1) if self.overfit else self.validation_batches(trainer)

    def _order(self, trainer: Trainer, images_seen: int) -> Order:
        """This rank's order from an image on: from the module's count of images, a resumed run goes on."""
        rank, world = trainer.global_rank, trainer.world_size
        return Order(seed=self.seed, batch_size=self.batch.size, rank=rank, world=world, images_seen=images_seen)

    def _first_batch(self, trainer: Trainer) -> FirstBatch:
        return FirstBatch(self.training_batches(self._order(trainer, 0)))


class ImageData(TrainingData):
    """Training images of a source, shuffled and augmented; validation images in order."""

    def __init__(self, *, source: Source, batch: RankBatch, num_workers: int, seed: int, overfit: bool = False) -> None:
        super().__init__(batch=batch, num_workers=num_workers, seed=seed, overfit=overfit)
        _ = source.class_names  # lists the files: a folder that is not there is refused before the run begins
        check_batch(batch.validated, 3, source.resolution, source.resolution)
        self.source = source

    def training_batches(self, order: Order) -> "DataLoader[Any]":
        return self.source.training_loader(order, self.num_workers)

    def validation_batches(self, trainer: Trainer) -> "DataLoader[Any]":
        held_out = self.source.count("val") if isinstance(self.source, IndexedSource) else trainer.world_size
        if held_out < trainer.world_size:  # the others would wait for a rank without any
            raise ValueError(f"{held_out} validation images can't be shared by {trainer.world_size} ranks")
        return in_order(
            self.source, "val", self.batch.validated, self.num_workers, trainer.global_rank, trainer.world_size
        )


class EncodedData(ImageData):
    """Moments of such images, which are encoded on the device, in float32."""

    def __init__(self, *, images: EncodedImages, **shared: Any) -> None:
        super().__init__(source=images.source, **shared)
        self.encode = images.encode

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        image, labels = batch
        return Batch(self.encode(image), labels, None, {})


class LatentData(TrainingData):
    """Training and validation moments of a cache, with what the conditioning reads beside; `coupling` pairs noise with
    latents here where it is `ahead` of the training step; `aligned`: training batches have the images' features."""

    def __init__(
        self,
        *,
        cache: LatentCache,
        batch: RankBatch,
        num_workers: int,
        seed: int,
        coupling: Coupling,
        conditioning: Conditioning,
        aligned: bool = False,
        overfit: bool = False,
    ) -> None:
        super().__init__(batch=batch, num_workers=num_workers, seed=seed, overfit=overfit)
        check_batch(batch.validated, *cache.latent_shape)
        self.noise = PairedNoise(coupling, cache.stats, seed) if coupling.ahead else None
        self.cache, self.conditioning, self.aligned = cache, conditioning, aligned

    def training_batches(self, order: Order) -> "DataLoader[Any]":
        moments = CachedMoments(self.cache, "train", self.noise, self.conditioning, self.aligned)
        return self._loader(moments, OrderedBatches(order, len(moments)))

    def validation_batches(self, trainer: Trainer) -> "DataLoader[Any]":
        moments = CachedMoments(self.cache, "val", conditioning=self.conditioning)
        if len(moments) < trainer.world_size:
            raise ValueError(f"{len(moments)} validation latents can't be shared by {trainer.world_size} ranks")
        left_out = len(moments) % trainer.world_size  # else ranks with a batch more would wait for the others for ever
        if left_out and trainer.is_global_zero:
            log.info("%d of %d validation latents are left out, for equal shares", left_out, len(moments))
        share = range(trainer.global_rank, len(moments) - left_out, trainer.world_size)
        n = self.batch.validated
        batches = [[(0, i) for i in share[j : j + n]] for j in range(0, len(share), n)]
        return self._loader(moments, batches)

    def _loader(self, moments: CachedMoments, batches: Any) -> "DataLoader[Any]":
        return loader(
            moments,
            self.num_workers,
            batch_sampler=batches,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),  # else a copy to the GPU waits for all that is queued there
        )


def _unchanged(batch: Any) -> Any:
    """The batch, for `__getitems__` has collated it already."""
    return batch
