"""Latents of images that training itself encodes: what `LatentCache` tells of its own, and nothing on disk."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.conditioning.labels import Conditioning, Kept
from ldm.data.cache_reader import Batch, LatentCache
from ldm.data.image_data import in_order
from ldm.data.order import Key, Order
from ldm.data.samples import Split
from ldm.data.shard_writer import LatentSums
from ldm.data.sources import IndexedSource, Source
from ldm.latents import LatentStats

MEASURED = 4096  # training images at most whose latents give the mean and standard deviation
HELD_OUT = 64  # validation images whose latents are at hand


class FewMoments:
    """Some images' moments by their numbers, as `CachedMoments` has them: not mirrored, without captions."""

    def __init__(self, moments: Tensor, labels: Tensor) -> None:
        self.moments, self.labels = moments, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> Batch:
        rows = [index for _, index in keys]
        return Batch(self.moments[rows], self.labels[rows], None, {})

    def captions(self, indices: list[int]) -> list[str]:
        return [""] * len(indices)


class EncodedImages:
    """The latents of a source's images, which are encoded when they are needed.

    Args:
        source:      of the images
        encode:      image, uint8 [B, 3, R, R] -> moments [B, 2C, h, w]
        autoencoder: the fingerprint of the weights that do so
        device:      where they do so before training begins
        batch_size:  images that are encoded at once here
        stats:       what normalises the latents: of the card of a run that goes on, or of a teacher; None: it is
                     measured on at most MEASURED training images, chosen, cropped and mirrored as in training
        whiten:      whether what is measured makes channels uncorrelated, too
    """

    pairs = None  # of a teacher's samples: there are none
    codes = None  # nor are there codes

    def __init__(
        self,
        *,
        source: Source,
        encode: Callable[[Tensor], Tensor],
        autoencoder: str,
        device: torch.device,
        batch_size: int,
        stats: dict[str, Any] | None,
        whiten: bool = False,
    ) -> None:
        self.source, self.encode, self.autoencoder, self.batch_size = source, encode, autoencoder, batch_size
        self.class_names, self.preprocessing = source.class_names, source.preprocessing()
        self.device = device
        channels, *size = self._first(self._training_images(), 1).moments.shape[1:]
        self.latent_shape = (channels // 2, size[0], size[1])
        self.stats_card = self._measured(whiten) if stats is None else stats
        self.stats = LatentStats.of(self.stats_card)

    def kept(self) -> Kept:
        """What is kept beside latents, for conditions: nothing."""
        return Kept(
            place="latents=null",
            captioned=0,
            captions=lambda: iter(()),
            text_encoder=None,
            low_resolution=None,
            resolution=self.source.resolution,
            latent_size=self.latent_shape[1],
        )

    @cached_property
    def _train(self) -> FewMoments:
        return self._first(self._training_images(), MEASURED)

    def few(self, split: Split, conditioning: Conditioning | None = None) -> FewMoments:  # noqa: ARG002
        """Some of a split's, in its order; of training where nothing is held out."""
        if split == "train":
            return self._train
        held_out = self._first(iter(in_order(self.source, "val", self.batch_size)), HELD_OUT)
        return held_out if len(held_out) else self._train

    def _training_images(self) -> Iterator[Any]:
        """Batches as training has them first."""
        count = MEASURED
        if isinstance(self.source, IndexedSource):
            count = min(count, self.source.count("train"))
        order = Order(seed=0, batch_size=min(self.batch_size, count), rank=0, world=1, images_seen=0)
        batches, left = iter(self.source.training_loader(order, 0)), count
        while left > 0:
            images, labels = next(batches)
            yield images[:left], labels[:left]
            left -= len(labels)

    def _first(self, batches: Iterator[Any], count: int) -> FewMoments:
        moments, labels = [], [torch.zeros(0, dtype=torch.long)]
        while sum(map(len, labels)) < count and (batch := next(batches, None)) is not None:
            moments.append(self.encode(batch[0].to(self.device)).cpu().half())
            labels.append(batch[1])
        return FewMoments(torch.cat(moments) if moments else torch.zeros(0), torch.cat(labels))

    def _measured(self, whiten: bool) -> dict[str, Any]:
        sums = LatentSums()
        sums.add(self._train.moments.numpy()[:, np.newaxis])  # of one view
        return sums.statistics(whiten=whiten)


Latents = LatentCache | EncodedImages  # what stage 2 trains on
