"""The order of training data: a pure function of (seed, images seen, world size): a resumed run needs no state."""

from collections.abc import Iterator
from dataclasses import dataclass

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


class OrderedBatches:
    """An endless batch sampler for torch's DataLoader; without a length, on purpose."""

    def __init__(self, order: Order, length: int) -> None:
        self.order, self.length = order, length

    def __iter__(self) -> Iterator[list[Key]]:
        return self.order.batches(self.length)
