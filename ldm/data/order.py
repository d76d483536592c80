"""The order of training data, a function of (seed, images seen, world size): a resumed run needs no other state."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

import numpy as np

Key = tuple[int, int]  # (epoch, index into the data)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Where a rank is in the stream of shuffled epochs laid end to end.

    Ranks take consecutive slices of each global batch: over all ranks each epoch sees every image exactly once, nothing
    is padded or dropped, and every rank has equally many batches.

    Args:
        seed:        of the shuffle.
        batch_size:  images of a batch of one rank.
        rank:        this rank, counted from 0.
        world:       number of ranks.
        images_seen: images that all ranks together have trained on.
    """

    seed: int
    batch_size: int
    rank: int = 0
    world: int = 1
    images_seen: int = 0

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
    """The elements at these places of a random permutation of range(length), which is not computed elsewhere.

    A Feistel network permutes the numbers below the next power of four; a number that leaves the range is sent through
    it again until it is back (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). So a billion images
    need neither memory nor time to be shuffled.
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
    """An endless loader cut into Lightning's epochs: each pass of `length` batches goes on where the last one ended.

    Because it has a length, Lightning reads no batch ahead that would be lost between two passes. Its workers stay.
    """

    def __init__(self, loader: Iterable[Any], length: int) -> None:
        self.loader, self.length = loader, length
        self.iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict[str, Any]:
        """Empty, for the position is the module's count of images; its presence tells Lightning to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing, for the same reason."""

    def __iter__(self) -> Iterator[Any]:
        self.iterator = iter(self.loader) if self.iterator is None else self.iterator
        return islice(self.iterator, self.length)


class FirstBatch:
    """The first batch of a loader, for ever."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return repeat(next(iter(self.loader)))


class OrderedBatches:
    """An endless batch sampler for torch's DataLoader; it has no length, for it has no end."""

    def __init__(self, order: Order, length: int) -> None:
        self.order, self.length = order, length

    def __iter__(self) -> Iterator[list[Key]]:
        return self.order.batches(self.length)
