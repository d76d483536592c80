"""The layers of the U-Net, in LDM's names, and the one place that makes them.

Every layer is called with (x [B, C, h, w], emb [B, E], context [B, L, D] or None, its mask [B, 1, 1, L] or None) and
takes of them what it wants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.attention import AttentionBlock, SpatialTransformer
from ldm.models.layers import group_norm, upsample_nearest, zero_init

EPS = 1e-5  # of every GroupNorm here, as in LDM

Resample = Literal["up", "down", "none"]


class ResBlock(nn.Module):
    """A residual block, into which the embedding is projected between its two convolutions; the second starts at zero.

    Args:
        in_channels:  channels of the input
        out_channels: channels of the output
        emb_channels: channels of the embedding of time and label
        dropout:      probability, before the second convolution
        scale_shift:  the embedding scales and shifts the second norm (ADM); else it is added before it (LDM)
        resample:     "up" or "down": both branches change the resolution, by 2, before the first convolution (ADM's
                      resblock_updown); or "none"
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        scale_shift: bool,
        resample: Resample,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            group_norm(in_channels, EPS), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, (1 + scale_shift) * out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, EPS),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self._resampled(activation(norm(x))))
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            norm, *rest = self.out_layers
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
            for layer in rest:
                h = layer(h)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(self._resampled(x)) + h

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "none":
            return x
        return upsample_nearest(x) if self.resample == "up" else F.avg_pool2d(x, 2)


class Downsample(nn.Module):
    """Half the height and width, by a 3 x 3 convolution of stride 2 or, without one, by the mean of 2 x 2 pixels."""

    def __init__(self, channels: int, convolution: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolution else nn.AvgPool2d(2)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the height and width, by the nearest neighbour, then perhaps a 3 x 3 convolution."""

    def __init__(self, channels: int, convolution: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolution else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.conv(upsample_nearest(x))


class Stem(nn.Conv2d):
    """The first convolution, called as every layer is."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Stack(nn.ModuleList):
    """Layers in sequence; with `recompute`, their activations are computed again in the backward pass, not kept."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None, recompute: bool) -> Tensor:
        for layer in self:
            told = (x, emb, context, mask)
            x = checkpoint(layer, *told, use_reentrant=False) if recompute else layer(*told)
        return x


@dataclass(frozen=True, kw_only=True)
class LayerMaker:
    """Makes the layers of one U-Net; its fields are those arguments of `UNet` that all layers share."""

    emb_channels: int
    dropout: float
    scale_shift: bool
    attention_resolutions: Sequence[int]
    head_channels: int | None
    context_dim: int | None
    qk_norm: bool
    resblock_updown: bool
    conv_resample: bool

    def block(self, in_channels: int, out_channels: int, resample: Resample = "none") -> ResBlock:
        """A residual block."""
        return ResBlock(in_channels, out_channels, self.emb_channels, self.dropout, self.scale_shift, resample)

    def attention(self, channels: int, num_heads: int | None) -> nn.Module:
        """Attention, with a context where the network has one; ValueError if the heads do not divide the channels."""
        heads = channels / self.head_channels if self.head_channels is not None else num_heads or 0
        if heads != int(heads) or channels % int(heads):
            what = f"head_channels={self.head_channels}" if self.head_channels is not None else f"num_heads={num_heads}"
            raise ValueError(f"net.{what} does not divide a level of {channels} channels")
        if self.context_dim is None:
            return AttentionBlock(channels, int(heads), self.qk_norm)
        return SpatialTransformer(channels, int(heads), self.context_dim, self.qk_norm)

    def level(self, in_channels: int, out_channels: int, factor: int, num_heads: int | None) -> Stack:
        """A residual block and, at the downsample factors that have it, attention."""
        stack = Stack([self.block(in_channels, out_channels)])
        if factor in self.attention_resolutions:
            stack.append(self.attention(out_channels, num_heads))
        return stack

    def halving(self, channels: int) -> nn.Module:
        """From a resolution to half of it."""
        if self.resblock_updown:
            return self.block(channels, channels, "down")
        return Downsample(channels, self.conv_resample)

    def doubling(self, channels: int) -> nn.Module:
        """From a resolution to twice of it."""
        return self.block(channels, channels, "up") if self.resblock_updown else Upsample(channels, self.conv_resample)
