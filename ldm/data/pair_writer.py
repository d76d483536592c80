"""A teacher's samples as shards of a latent cache, whose noise belongs to their indices (Reflow: Liu et al. 2023).

The latents lie where an image's moments do, without a standard deviation; the noise that each was made from is a
function of (seed, index) and is drawn again when it is read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.samples import Contents, Part, Split, digest
from ldm.data.shard_writer import BLOCK, Block, LatentSums, ShardWriter
from ldm.latents import LatentStats

Draw = Callable[[Sequence[int]], tuple[Tensor, Tensor]]  # indices -> raw latents [n, C, h, w], labels [n]


@dataclass(frozen=True, kw_only=True)
class PairWriter(ShardWriter):
    """Draws a teacher's samples.

    Args:
        draw:       the samples with these indices
        stats:      of the teacher's latents, which its student is normalised by
        batch_size: samples that are drawn at once
    """

    draw: Draw
    stats: LatentStats
    batch_size: int

    def parts(self) -> list[tuple[Split, Part]]:
        assert self.identity.pairs is not None
        train, val = self.identity.pairs.train, self.identity.pairs.val
        return [*self._parts("train", 0, train), *self._parts("val", train, train + val)]

    def _parts(self, split: Split, first: int, end: int) -> Iterator[tuple[Split, Part]]:
        for i, start in enumerate(range(first, end, self.shard_size)):
            stop = min(end, start + self.shard_size)
            yield split, Part(f"{split}-{i:06d}", digest(start, stop), lambda: "", lambda: iter(()))

    def blocks(self, part: Part, contents: Contents) -> Iterator[Block]:  # noqa: ARG002  # of no files
        split, _, number = part.name.partition("-")
        pairs = self.identity.pairs
        assert pairs is not None
        first, end = (0, pairs.train) if split == "train" else (pairs.train, pairs.train + pairs.val)
        start = first + int(number) * self.shard_size
        indices = range(start, min(end, start + self.shard_size))
        for i in range(0, len(indices), BLOCK):
            block = indices[i : i + BLOCK]
            drawn = [self.draw(block[j : j + self.batch_size]) for j in range(0, len(block), self.batch_size)]
            latents = torch.cat([latent.cpu() for latent, _ in drawn])
            moments = torch.cat([latents, torch.zeros_like(latents)], dim=1).half()
            if not moments.isfinite().all():
                raise ValueError("the teacher's samples are not finite: look at its own samples first")
            labels = torch.cat([y.cpu() for _, y in drawn]).numpy().astype(np.int64)
            yield Block(moments[:, None].numpy(), labels)

    def statistics(self, sums: LatentSums) -> dict[str, Any]:  # noqa: ARG002
        return self.stats.card()
