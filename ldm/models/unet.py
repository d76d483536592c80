"""The U-Net of LDM and ADM (Dhariwal & Nichol 2021; Rombach et al. 2022), in LDM's names.

Every layer is called with (x, emb, context) and takes of them what it wants.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.attention import AttentionBlock, SpatialTransformer
from ldm.models.layers import group_norm, upsample_nearest, zero_init

EPS = 1e-5  # of every GroupNorm here, as in LDM
TIME_SCALE = 1000.0  # t in [0, 1] is embedded as LDM's timestep in [0, 1000]


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids [cos, sin] of 1000 t with periods from 2 pi to 2 pi 1e4 (Vaswani et al. 2017): [B] -> [B, dim]."""
    half = dim // 2
    frequencies = torch.exp(-math.log(1e4) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = TIME_SCALE * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


Resample = Literal["up", "down", "none"]


class ResBlock(nn.Module):
    """Residual block that takes in the projected embedding between its convolutions; the second starts at zero.

    scale_shift: the embedding scales and shifts the second norm (ADM), instead of being added before it (LDM).
    resample: both branches change resolution before the first convolution (ADM's resblock_updown).
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

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
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
    """3x3 convolution with stride 2; without one, the mean of 2x2."""

    def __init__(self, channels: int, convolution: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolution else nn.AvgPool2d(2)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour, then, if wanted, a 3x3 convolution."""

    def __init__(self, channels: int, convolution: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolution else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.conv(upsample_nearest(x))


class Stem(nn.Conv2d):
    """The first convolution."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Stack(nn.ModuleList):
    """Layers in sequence; with `recompute`, their activations are computed again in the backward pass, not kept."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, recompute: bool) -> Tensor:
        for layer in self:
            x = checkpoint(layer, x, emb, context, use_reentrant=False) if recompute else layer(x, emb, context)
        return x


class UNet(nn.Module):
    """ADM's U-Net, as LDM has it (Dhariwal & Nichol 2021, section 3; Rombach et al. 2022, appendix E).

    net(x_t [B, C, h, w], t [B] in [0, 1], y [B]) -> [B, C, h, w]: what the objective regresses. It never learns which
    path it serves. h and w must be multiples of `downsample_factor` (ValueError otherwise).

    Further conditions, for those who bind them: context [B, L, context_dim], to which the transformers attend, and
    concat [B, concat_channels, h, w], which is put beside x_t.

    Args:
        in_channels:           C, the latent's channels, in and out
        num_classes:           K; labels are 0 ... K - 1, and K itself, `null_class`, stands for no label
        model_channels:        the width, in channels, that channel_mult multiplies
        channel_mult:          the width at each resolution, in model_channels (0.5 is half of it); each further
                               resolution halves height and width
        num_res_blocks:        residual blocks at each resolution on the way down; one more on the way up
        attention_resolutions: downsample factors at which there is attention, as in LDM; in the middle there always is
        head_channels:         channels of an attention head; None where num_heads is given
        num_heads:             heads at each resolution; None where head_channels is given
        num_heads_upsample:    heads at each resolution on the way up; None is num_heads, without which it may not stand
        stem_channels:         width of the first convolution; None is model_channels, as in LDM (ADM: the first
                               resolution's width)
        dropout:               probability, in every residual block
        context_dim:           channels of a context token: makes every attention a transformer block with
                               cross-attention (LDM, figure 3); None for plain self-attention
        label_as:              "embedding" adds the label's to the time's (ADM); "context" makes it a context token
        concat_channels:       channels of the condition beside x_t; 0 for none
        scale_shift:           ADM's adaptive group norm: see `ResBlock`
        resblock_updown:       change the resolution by residual blocks, as ADM does, not by plain layers
        conv_resample:         whether a convolution goes with each such plain layer
        qk_norm:               normalise queries and keys (root mean square, learned scale), for half precision
        time_offset:           the network sees the timestep 1000 t - time_offset; 1 for published weights, which count
                               from 0
        checkpoint:            recompute activations in the backward pass: less memory for about a third more time
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        model_channels: int,
        channel_mult: Sequence[float],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        head_channels: int | None = None,
        num_heads: int | None = None,
        num_heads_upsample: int | None = None,
        stem_channels: int | None = None,
        dropout: float = 0.0,
        context_dim: int | None = None,
        label_as: Literal["embedding", "context"] = "embedding",
        concat_channels: int = 0,
        scale_shift: bool = False,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        qk_norm: bool = False,
        time_offset: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.time_offset = time_offset
        if (head_channels is None) == (num_heads is None):
            raise ValueError("net: give one of head_channels and num_heads, and leave the other null")
        if num_heads_upsample is not None and (num_heads is None or context_dim is not None):
            raise ValueError("net.num_heads_upsample goes with net.num_heads, and without a net.context_dim")
        if label_as not in ("embedding", "context") or (label_as == "context" and context_dim is None):
            raise ValueError(f"net.label_as={label_as} must be embedding, or context with a context_dim")
        self.model_channels, self.null_class = model_channels, num_classes
        self.context_dim, self.label_as, self.concat_channels = context_dim, label_as, concat_channels
        self.checkpoint = checkpoint
        self.downsample_factor = 2 ** (len(channel_mult) - 1)
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.label_emb = nn.Embedding(num_classes + 1, emb_channels if label_as == "embedding" else context_dim or 0)

        def block(channels_in: int, channels_out: int, resample: Resample = "none") -> ResBlock:
            return ResBlock(channels_in, channels_out, emb_channels, dropout, scale_shift, resample)

        def attention(channels: int, counted: int | None) -> nn.Module:
            heads = channels / head_channels if head_channels is not None else counted or 0
            if heads != int(heads) or channels % int(heads):
                what = f"head_channels={head_channels}" if head_channels is not None else f"num_heads={counted}"
                raise ValueError(f"net.{what} does not divide a level of {channels} channels")
            if context_dim is None:
                return AttentionBlock(channels, int(heads), qk_norm)
            return SpatialTransformer(channels, int(heads), context_dim, qk_norm)

        def level(channels_in: int, channels_out: int, factor: int, counted: int | None) -> Stack:
            stack = Stack([block(channels_in, channels_out)])
            if factor in attention_resolutions:
                stack.append(attention(channels_out, counted))
            return stack

        widths = [round(mult * model_channels) for mult in channel_mult]
        width, factor = stem_channels or model_channels, 1
        skips = [width]
        self.input_blocks = nn.ModuleList([Stack([Stem(in_channels + concat_channels, width, 3, padding=1)])])
        for i, level_width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(level(width, level_width, factor, num_heads))
                width = level_width
                skips.append(width)
            if i < len(widths) - 1:
                halve = block(width, width, "down") if resblock_updown else Downsample(width, conv_resample)
                self.input_blocks.append(Stack([halve]))
                skips.append(width)
                factor *= 2
        self.middle_block = Stack([block(width, width), attention(width, num_heads), block(width, width)])
        self.output_blocks = nn.ModuleList()
        for i, level_width in reversed(list(enumerate(widths))):
            for j in range(num_res_blocks + 1):
                stack = level(width + skips.pop(), level_width, factor, num_heads_upsample or num_heads)
                width = level_width
                if i > 0 and j == num_res_blocks:
                    stack.append(block(width, width, "up") if resblock_updown else Upsample(width, conv_resample))
                    factor //= 2
                self.output_blocks.append(stack)
        self.out = nn.Sequential(
            group_norm(width, EPS), nn.SiLU(), zero_init(nn.Conv2d(width, in_channels, 3, padding=1))
        )

    @property
    def fsdp_blocks(self) -> list[nn.Module]:
        """What FSDP shards block by block."""
        return [module for module in self.modules() if isinstance(module, Stack)]

    def forward(
        self, x_t: Tensor, t: Tensor, y: Tensor, context: Tensor | None = None, concat: Tensor | None = None
    ) -> Tensor:
        f = self.downsample_factor
        if x_t.shape[-1] % f or x_t.shape[-2] % f:
            raise ValueError(f"latent size {tuple(x_t.shape[-2:])} is not a multiple of the U-Net's factor {f}")
        emb, label = (
            self.time_embed(time_embedding(t - self.time_offset / TIME_SCALE, self.model_channels).to(x_t.dtype)),
            self.label_emb(y),
        )  # [B, 4 mc]
        if self.label_as == "embedding":
            emb = emb + label
        else:
            context = label[:, None] if context is None else torch.cat([label[:, None], context], dim=1)
        if (context is None) != (self.context_dim is None):
            raise ValueError("the network wants a context exactly where net.context_dim is given")
        if (0 if concat is None else concat.shape[1]) != self.concat_channels:
            raise ValueError(f"the network wants {self.concat_channels} channels of concat beside x_t")
        recompute = self.checkpoint and torch.is_grad_enabled()
        h, skips = x_t if concat is None else torch.cat([x_t, concat], dim=1), []
        for block in self.input_blocks:
            h = block(h, emb, context, recompute)
            skips.append(h)
        h = self.middle_block(h, emb, context, recompute)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context, recompute)
        return self.out(h)
