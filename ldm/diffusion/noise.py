"""Noise that belongs to a sample's index, so that batch size, ranks and device change none of it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class IndexedNoise:
    """Standard normal noise for a batch of samples, each from a generator of its own, seeded by (seed, index).

    The generators are NumPy's because torch's on the CPU use 32 bits of a seed only, so that two of 50,000 samples
    might be given the same noise.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [np.random.default_rng((seed, index)) for index in indices]

    def draw(self, shape: Sequence[int]) -> Tensor:
        """[B, *shape], float32, on the CPU."""
        return torch.from_numpy(np.stack([g.standard_normal(tuple(shape), dtype=np.float32) for g in self.generators]))

    def __call__(self, x: Tensor) -> Tensor:
        """Noise of x's shape [B, ...], type and device: what a stochastic sampler asks for."""
        return self.draw(x.shape[1:]).to(x)
