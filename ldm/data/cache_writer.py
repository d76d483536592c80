"""Images as shards of the latent cache: decoded ahead by threads, encoded in batches.

views is 2 if the source may be mirrored, else 1. The second view encodes the mirrored pixels, because the mirror image
of a latent is another latent than that of the mirrored pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ldm.data.formats import CacheIdentity, DenseFeaturesCard, TextEncoderCard, dtype_of
from ldm.data.samples import Contents, Part, Sample, Split
from ldm.data.shard_writer import BLOCK, CAPTIONS, FEATURES, Block, Kept, LatentSums, ShardWriter
from ldm.data.sources import Source
from ldm.images import shrunk

Encode = Callable[[Tensor], Tensor]  # image [B, 3, R, R] uint8 -> moments [B, 2C, h, w], or codes [B, 1, h, w]
_T = TypeVar("_T")
Dense = Callable[[Tensor], Tensor]  # image [B, 3, R, R] uint8 -> features [B, D, h, w]
EncodeText = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # captions -> embeddings [n, L, D], bool [n, L]


class _View(NamedTuple):
    image: Tensor  # [3, R, R] uint8
    label: int
    caption: str
    low: Tensor | None  # its small copy, [3, r, r]


def cache_identity(
    source: Source,
    weights_fingerprint: str,
    text_encoder: dict[str, Any] | None = None,
    low_resolution: int | None = None,
    features: DenseFeaturesCard | None = None,
    codes: int | None = None,
) -> CacheIdentity:
    """What all shards of a cache have in common; `weights_fingerprint` is the autoencoder's.

    Raises:
        ValueError: if small copies would not be smaller than the images.
    """
    if low_resolution is not None and low_resolution >= source.resolution:
        raise ValueError(f"low_resolution={low_resolution} must be less than data.resolution={source.resolution}")
    return CacheIdentity(
        format=1,
        autoencoder=weights_fingerprint,
        preprocessing=source.preprocessing(),
        views=2 if source.flip else 1,
        dtype=dtype_of(codes),
        class_names=source.class_names,
        text_encoder=None if text_encoder is None else TextEncoderCard(**text_encoder),
        low_resolution=low_resolution,
        features=features,
        codes=codes,
    )


@dataclass(frozen=True, kw_only=True)
class CacheWriter(ShardWriter):
    """Encodes parts of a source into shards.

    Args:
        source:      of the images; one that consists of shards decides itself what a shard is.
        encode:      image [B, 3, R, R] uint8 -> moments [B, 2C, h, w]; in a cache of codes, these.
        batch_size:  images that are encoded at once.
        num_workers: threads that decode images meanwhile.
        encode_text: captions -> embeddings; None: none are kept.
        dense:       images -> their features; None: none are kept.
        whiten:      whether the latents are normalised so that their channels are uncorrelated, from the same shards.
    """

    source: Source
    encode: Encode
    batch_size: int
    num_workers: int
    encode_text: EncodeText | None = None
    dense: Dense | None = None
    whiten: bool = False

    def statistics(self, sums: LatentSums) -> dict[str, Any]:
        if self.identity.codes is not None:  # which nothing normalises
            return {"mean": [0.0], "std": [1.0], "whitening": None}
        return sums.statistics(whiten=self.whiten)

    def parts(self) -> list[tuple[Split, Part]]:
        splits: tuple[Split, ...] = ("train", "val")
        return [(split, part) for split in splits for part in self.source.parts(split, self.shard_size)]

    def blocks(self, part: Part, contents: Contents) -> Iterator[Block]:
        pending: list[_View] = []
        moments: list[np.ndarray] = []
        features: list[np.ndarray] = []
        views: list[_View] = []
        for view in _with_end(self._views(contents.of(part.samples()))):
            if view is not None:
                pending.append(view)
            if pending and (view is None or len(pending) == self.batch_size):
                images = torch.stack([each.image for each in pending])
                moments.append(self._encode_views(images))
                if self.dense is not None:
                    features.append(_finite_half(self.dense(images), "features= are"))
                views += [view._replace(image=view.image[:, :0]) for view in pending]  # whose pixels may go
                pending = []
            if views and (view is None or len(views) >= BLOCK):
                labels = np.array([each.label for each in views], dtype=np.int64)
                kept = self._kept(views) | ({FEATURES: np.concatenate(features)} if features else {})
                yield Block(np.concatenate(moments), labels, kept)
                moments, features, views = [], [], []

    def _kept(self, views: list[_View]) -> Kept:
        """What of images the conditions may ask for: see `ldm.data.shard_writer`."""
        captions, kept = [view.caption for view in views], Kept()
        if any(captions):
            kept[CAPTIONS] = np.array([caption.encode() for caption in captions])
        if self.encode_text is not None:
            embeddings, mask = self.encode_text(captions)
            kept |= {"embeddings": embeddings.half().numpy(), "text_mask": mask.numpy()}
        copies = [view.low for view in views if view.low is not None]
        if copies:
            kept["low"] = torch.stack(copies).numpy()
        return kept

    def _views(self, samples: Iterable[Sample]) -> Iterator[_View]:
        """The images that can be decoded, in order.

        Threads decode them two batches ahead of the encoder: they run at once, for Pillow releases Python's lock.
        """
        with ThreadPoolExecutor(self.num_workers) as pool:
            ahead: deque[Future[_View | None]] = deque()
            for sample in _with_end(samples):
                if sample is not None:
                    ahead.append(pool.submit(self._view, sample))
                while ahead and (sample is None or len(ahead) > 2 * self.batch_size):
                    if (view := ahead.popleft().result()) is not None:
                        yield view

    def _view(self, sample: Sample) -> _View | None:
        image = self.source.decode(sample)
        if image is None:
            return None
        pixels, side = self.source.center_view(image), self.identity.low_resolution
        low = None if side is None else shrunk(pixels, side)
        return _View(pixels, sample.label, sample.caption, low)

    def _encode_views(self, image: Tensor) -> np.ndarray:
        views = [image, image.flip(-1)][: self.identity.views]
        encoded = torch.stack([self.encode(view) for view in views], dim=1)
        if self.identity.codes is not None:
            return encoded.cpu().numpy().astype(self.identity.dtype)
        fix = ": train it longer or with a larger regularizer.weight="
        return _finite_half(encoded, "the autoencoder's moments are", fix)


def _finite_half(values: Tensor, what: str, fix: str = "") -> np.ndarray:
    """The values in fp16; ValueError if that does not hold one."""
    half = values.half()
    if not half.isfinite().all():
        raise ValueError(f"{what} not finite in fp16{fix}")
    return half.cpu().numpy()


def _with_end(items: Iterable[_T]) -> Iterator[_T | None]:
    """The items, then None, at which a loop can finish what is pending by the same lines."""
    yield from items
    yield None
