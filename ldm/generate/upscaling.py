"""Pictures with more pixels: drawn by a model that was told of small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.conditioning.low_resolution import Upscale, noised
from ldm.diffusion.noise import IndexedNoise
from ldm.generate.generator import Generator
from ldm.generate.model import LatentDiffusionModel
from ldm.images import to_x

APART = 1 << 32  # from the sample's seed to that of the small picture's noise


def upscale_of(model: LatentDiffusionModel) -> Upscale:
    """What a model was told; ValueError where it was not trained to upscale."""
    if not isinstance(model.conditioning, Upscale):
        raise ValueError("the model was not trained to upscale (condition=upscale): name one that was")
    return model.conditioning


def sized_for(model: LatentDiffusionModel, height: int, width: int) -> LatentDiffusionModel:
    """The model whose results are of small pictures of this height and width; ValueError where there is none."""
    per_cell = upscale_of(model).per_cell or 1.0
    return model.sized([int(height / per_cell), int(width / per_cell)])


def multiple_for(model: LatentDiffusionModel) -> int:
    """Of which the sides of small pictures must be multiples."""
    factor = int(getattr(model.net, "downsample_factor", 1))
    return max(1, int(factor * (upscale_of(model).per_cell or 1.0)))


@torch.no_grad()
def upscaled(generator: Generator, small: Tensor, labels: Tensor, indices: Sequence[int], noise: float = 0.0) -> Tensor:
    """Images, uint8 [B, 3, H, W], of small ones, uint8 [B, 3, a, b].

    Args:
        generator: how they are sampled; of a model that was `sized_for` them
        small:     what is known
        labels:    [B]; the null class says nothing
        indices:   of the samples, which determine their noise
        noise:     level of the noise that is laid on the small pictures: more lets the model make up more
    """
    model = generator.model
    kind = upscale_of(model)
    x = to_x(small.to(model.device))
    eps = IndexedNoise(generator.seed + APART, indices).draw(tuple(x.shape[1:])).to(x)
    level = torch.full((len(x),), noise, device=x.device)
    condition = kind.small(labels.to(x.device), noised(x, level, eps), level)
    return generator.images(indices, condition)[0]
