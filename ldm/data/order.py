"""The order of training data: a pure function of (seed, images seen, world size): a resumed run needs no state."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

Key = tuple[int, int]  # (epoch, index into the data)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Where a rank is in the stream of shuffled epochs laid end to end.

    Ranks take consecutive slices of each global batch, so that each epoch sees every image exactly once over all ranks,
    nothing is padded or dropped, and every rank has equally many batches.
    """

    seed: int
    batch_size: int  # of one rank
    rank: int = 0
    world: int = 1
    images_seen: int = 0  # over all ranks

    def batches(self, length: int) -> Iterator[list[Key]]:
        """Yield this rank's batches of keys into data of the given length, for ever."""
        position = self.images_seen + self.rank * self.batch_size
        while True:
            epochs, places = np.divmod(np.arange(position, position + self.batch_size), length)
            batch: list[Key] = []
            for epoch in np.unique(epochs):
                indices = shuffled(places[epochs == epoch], length, (self.seed, int(epoch)))
                batch += [(int(epoch), int(index)) for index in indices]
            yield batch
            position += self.batch_size * self.world


def shuffled(places: np.ndarray, length: int, seed: tuple[int, ...]) -> np.ndarray:
    """What a random permutation of range(length) has at the given places, without the permutation.

    A Feistel network permutes the next power of four; what leaves the range is sent through it again until it is back
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). A billion images need no memory, and no wait.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask, keys = np.uint64((1 << half) - 1), np.random.SeedSequence(seed).generate_state(6, np.uint64)
    out = places.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        left, right = out[outside] >> np.uint64(half), out[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        out[outside] = (left << np.uint64(half)) | right
        outside = out >= length
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finaliser of splitmix64; Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Stretches:
    """An endless loader as Lightning's epochs want it: each pass of `length` batches goes on where the last ended.

    Having a length, it is not read ahead, so that no batch is lost between two passes; and its workers stay.
    """

    def __init__(self, loader: Iterable[Any], length: int) -> None:
        self.loader, self.length = loader, length
        self.iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where it stands is the module's count of images. That it has one tells Lightning that it resumes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, likewise."""

    def __iter__(self) -> Iterator[Any]:
        self.iterator = iter(self.loader) if self.iterator is None else self.iterator
        return islice(self.iterator, self.length)


class OrderedBatches:
    """An endless batch sampler for torch's DataLoader; without a length, on purpose."""

    def __init__(self, order: Order, length: int) -> None:
        self.order, self.length = order, length

    def __iter__(self) -> Iterator[list[Key]]:
        return self.order.batches(self.length)
