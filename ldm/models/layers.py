"""Layers that the autoencoder and the U-Net share."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, eps: float, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm of 32 groups, as in LDM, or of the largest divisor of the wanted number that divides the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps)


def zero_init(module: nn.Module) -> nn.Module:
    """Set a layer's parameters to zero, so that a residual block that ends with it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def upsample_nearest(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
