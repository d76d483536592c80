"""Images larger than memory: apply a network tile by tile, and blend the seams."""

from collections.abc import Callable

import torch
from torch import Tensor


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start, so that neighbours overlap by at least `overlap` and the last one ends with the image."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int) -> Tensor:
    """function(x), computed on tiles of `tile` x `tile` of x [B, C, H, W] that overlap and are blended linearly.

    The function may enlarge or reduce by a whole factor (a decoder or an encoder): tile, overlap and x's sides must
    then be multiples of what it reduces by. Where the function sees less than half the overlap around a pixel, the
    result is exact; a GroupNorm or an attention sees the whole tile, so that an autoencoder's is close, without seams.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} can't overlap by {overlap}")
    if max(x.shape[-2:]) <= tile:
        return function(x)
    total = weights = torch.zeros(())
    for top in positions(x.shape[-2], tile, overlap):
        for left in positions(x.shape[-1], tile, overlap):
            piece = x[..., top : top + tile, left : left + tile]
            part = function(piece)
            up, down = max(1, part.shape[-1] // piece.shape[-1]), max(1, piece.shape[-1] // part.shape[-1])
            if weights.dim() == 0:
                total = part.new_zeros(*part.shape[:2], x.shape[-2] * up // down, x.shape[-1] * up // down)
                weights = part.new_zeros(total.shape[-2:])
            blend = overlap * up // down
            window = ramp(part.shape[-2], blend, part)[:, None] * ramp(part.shape[-1], blend, part)
            (y, h), (x_, w) = (
                (start * up // down, side) for start, side in zip((top, left), part.shape[-2:], strict=True)
            )
            place = (..., slice(y, y + h), slice(x_, x_ + w))
            total[place] += part * window
            weights[place] += window
    return total / weights


def ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Rises over `overlap`, is 1, and falls again: [length]; never 0, so that the image's border is covered."""
    edge = torch.arange(length, dtype=like.dtype, device=like.device)
    return (torch.minimum(edge, edge.flip(0)) + 0.5).div(max(1, overlap)).clamp(max=1.0)
