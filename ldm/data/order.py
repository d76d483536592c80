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
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        position = self.images_seen + self.rank * self.batch_size
        while True:
            batch = []
            for p in range(position, position + self.batch_size):
                if p // length != epoch:
                    epoch = p // length
                    permutation = np.random.default_rng((self.seed, epoch)).permutation(length)
                batch.append((epoch, int(permutation[p % length])))
            yield batch
            position += self.batch_size * self.world


class Stretches:
    """An endless loader as Lightning's epochs want it: each pass of `length` batches goes on where the last ended.

    Having a length, it is not read ahead, so that no batch is lost between two passes; and its workers stay.
    """

    def __init__(self, loader: Iterable[Any], length: int) -> None:
        self.loader, self.length = loader, length
        self.iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self.iterator = iter(self.loader) if self.iterator is None else self.iterator
        return islice(self.iterator, self.length)


class OrderedBatches:
    """An endless batch sampler for torch's DataLoader; without a length, on purpose."""

    def __init__(self, order: Order, length: int) -> None:
        self.order, self.length = order, length

    def __iter__(self) -> Iterator[list[Key]]:
        return self.order.batches(self.length)
