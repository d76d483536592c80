"""Layers that the autoencoder and the U-Net share."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, eps: float, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm of 32 groups, as in LDM, or of the largest divisor of the wanted number that divides the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps)


def check_factors(part: str, attention_resolutions: Sequence[int], levels: int) -> None:
    """ValueError for a downsample factor that a network of so many resolutions does not have."""
    factors = [2**level for level in range(levels)]
    for factor in attention_resolutions:
        if factor not in factors:
            raise ValueError(
                f"{part}.attention_resolutions={list(attention_resolutions)} must list downsample factors of "
                f"{part}.channel_mult's resolutions, which are {', '.join(map(str, factors))}"
            )


def zero_init(module: nn.Module) -> nn.Module:
    """Set a layer's parameters to zero, so that a residual block that ends with it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def upsample_nearest(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
