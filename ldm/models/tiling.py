"""Images larger than memory: apply a network tile by tile, and blend the seams."""

from collections.abc import Callable

import torch
from torch import Tensor


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` pixels start along a side of `length` pixels, so that neighbours overlap by at least
    `overlap` and the last one ends with the image."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int) -> Tensor:
    """function(x), computed on overlapping tiles of x [B, C, H, W], which are blended linearly.

    Where the function sees less than half the overlap around a pixel, the result is exact. A GroupNorm or an attention
    sees its whole tile, so that an autoencoder's result is close, and has no seams.

    Args:
        function: may enlarge or reduce by a whole factor, as a decoder or an encoder does
        x:        [B, C, H, W]
        tile:     side of a tile, in pixels of x; with overlap, H and W a multiple of what the function reduces by
        overlap:  pixels that neighbours share, fewer than tile (ValueError otherwise)
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
    """Weights [length] that rise over `overlap` pixels, are 1, and fall again; none is 0, since at the image's border
    there is no other tile."""
    edge = torch.arange(length, dtype=like.dtype, device=like.device)
    return (torch.minimum(edge, edge.flip(0)) + 0.5).div(max(1, overlap)).clamp(max=1.0)
