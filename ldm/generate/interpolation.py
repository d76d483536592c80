"""From one sample to another: between their noises and between what they are told."""

import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.noise import IndexedNoise
from ldm.generate.generator import Generator
from ldm.generate.model import LatentDiffusionModel


def check_interpolates(model: LatentDiffusionModel) -> None:
    """ValueError of a model that has nothing between two samples."""
    if model.of_codes:
        raise ValueError("interpolation= walks between latents, and this model makes codes: pass interpolation=0")


@torch.no_grad()
def interpolate(generator: Generator, seeds: tuple[int, int], told: tuple[Condition, Condition], frames: int) -> Tensor:
    """Images on the way from sample 0 of a seed and a condition to sample 0 of another, uint8 [frames, 3, H, W].

    The noise turns from the one to the other on the sphere on which nearly all of it lies (`slerp`). Between two
    conditions what the guided network says of both is mixed, (1 - w) net(x_t, t, a) + w net(x_t, t, b), which any
    network can be asked for, and which at the ends is one alone.

    Args:
        generator: how each is sampled; its own seed does not count
        seeds:     of the first image and of the last
        told:      likewise, of one row each
        frames:    images, both ends among them

    Raises:
        ValueError: of a model of codes, whose noise is an order and no place to go from.
    """
    check_interpolates(generator.model)
    model, device = generator.model, generator.model.device
    w = torch.linspace(0, 1, frames, device=device).view(-1, 1, 1, 1)
    first, last = (IndexedNoise(seed, [0]).draw(model.latent_shape).to(device) for seed in seeds)
    net = generator.net()
    a, b = (each.to(device).rows([0] * frames) for each in told)
    same = told[0] is told[1]

    def mixed(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return net(x_t, t, condition) if same else torch.lerp(net(x_t, t, a), net(x_t, t, b), w)

    noise = IndexedNoise(seeds[0], [0] * frames)  # what a stochastic sampler adds is the same for all
    noise.draw(model.latent_shape)  # as for the first image, whose start is the first that its generator draws
    latents, _ = generator.latents_from(slerp(first, last, w), mixed, a, noise)
    return model.decode(latents)


def slerp(first: Tensor, last: Tensor, w: Tensor) -> Tensor:
    """sin((1 - w) theta) / sin(theta) first + sin(w theta) / sin(theta) last, theta the angle between both (Shoemake
    1985; of noise: Song et al. 2021, DDIM, eq. 67).

    Args:
        first, last: [1, C, h, w]
        w: shares of the way, [n, 1, 1, 1]
    """
    theta = torch.acos(torch.cosine_similarity(first.flatten(1), last.flatten(1)).clamp(-1, 1))
    if theta.sin().abs() < 1e-6:  # the same noise, or its opposite, to which no way is shorter than others
        return torch.lerp(first, last, w)
    return ((1 - w) * theta).sin() / theta.sin() * first + (w * theta).sin() / theta.sin() * last
