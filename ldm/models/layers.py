"""Layers and checks that several networks share."""

import math
from collections.abc import Sequence

import torch
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


def parts_taken(*, context: bool, concat: bool, second_time: bool, guidance: bool) -> tuple[str, ...]:
    """The names of the parts of a `Condition` that a network of these takes, in their order."""
    further = {"context": context, "mask": context, "concat": concat, "s": second_time, "w": guidance}
    return ("label", *(name for name, taken in further.items() if taken))


def put_beside(x_t: Tensor, concat: Tensor | None, channels: int) -> Tensor:
    """x_t [B, C, h, w] with the condition's channels beside it; ValueError unless there are so many."""
    if (0 if concat is None else concat.shape[1]) != channels:
        raise ValueError(f"the network wants {channels} channels of concat beside x_t")
    return x_t if concat is None else torch.cat([x_t, concat.to(x_t.dtype)], dim=1)
