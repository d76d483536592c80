"""Noise that belongs to a sample's index, whatever the batch size, the number of ranks or the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class IndexedNoise:
    """Standard normal noise for a batch of samples, each from a generator of its own, seeded by (seed, index)."""

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed((seed << 32) + index) for index in indices]

    def draw(self, shape: Sequence[int]) -> Tensor:
        """[B, *shape] on the CPU, where alone generators agree between machines."""
        return torch.stack([torch.randn(*shape, generator=generator) for generator in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        """Noise of x's shape [B, ...], type and device: what a stochastic sampler asks for."""
        return self.draw(x.shape[1:]).to(x)
