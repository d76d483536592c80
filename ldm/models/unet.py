"""The U-Net of LDM and ADM (Dhariwal & Nichol 2021; Rombach et al. 2022) with class conditioning, in LDM's names."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.layers import group_norm, upsample_nearest, zero_init

EPS = 1e-5  # of every GroupNorm here, as in LDM
TIME_SCALE = 1000.0  # t in [0, 1] is embedded as LDM's timestep in [0, 1000]


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids [cos, sin] of 1000 t with periods from 2 pi to 2 pi 1e4 (Vaswani et al. 2017): [B] -> [B, dim]."""
    half = dim // 2
    frequencies = torch.exp(-math.log(1e4) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = TIME_SCALE * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Residual block that adds the projected embedding between its convolutions; the second starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(in_channels, EPS), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, EPS),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over positions; the output projection starts at zero."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"net.head_channels={head_channels} does not divide a level of {channels} channels")
        self.num_heads = channels // head_channels
        self.norm = group_norm(channels, EPS)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.qkv(self.norm(x.flatten(2)))  # [B, heads (q k v) C/heads, hw]: heads first, then q, k, v, as in LDM
        h = h.unflatten(1, (self.num_heads, 3, -1)).transpose(3, 4)  # [B, heads, 3, hw, C/heads]
        h = F.scaled_dot_product_attention(*h.unbind(2)).transpose(2, 3)  # [B, heads, C/heads, hw]
        return x + self.proj_out(h.flatten(1, 2)).reshape(x.shape)


class Downsample(nn.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(upsample_nearest(x))


class Stem(nn.Conv2d):
    """The first convolution, which ignores the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Stack(nn.ModuleList):
    """Layers in sequence, each called with the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb)
        return x


class UNet(nn.Module):
    """net(x_t [B, C, h, w], t [B] in [0, 1], y [B] or None) -> [B, C, h, w]; it never learns which path it serves.

    Args:
        in_channels: C of the latent, in and out.
        num_classes: labels are 0 ... num_classes - 1; the index num_classes is the null class (y None means all null).
        model_channels: width at full resolution; channel_mult multiplies it, one entry a resolution.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attention_resolutions: downsample factors at which levels attend, as in LDM (the middle always does).
        head_channels: channels an attention head.
        dropout: in every residual block.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        head_channels: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.model_channels, self.null_class = model_channels, num_classes
        self.downsample_factor = 2 ** (len(channel_mult) - 1)
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.label_emb = nn.Embedding(num_classes + 1, emb_channels)

        def level(channels_in: int, channels_out: int, factor: int) -> Stack:
            stack = Stack([ResBlock(channels_in, channels_out, emb_channels, dropout)])
            if factor in attention_resolutions:
                stack.append(AttentionBlock(channels_out, head_channels))
            return stack

        width, factor = model_channels, 1
        skips = [width]
        self.input_blocks = nn.ModuleList([Stack([Stem(in_channels, width, 3, padding=1)])])
        for i, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(level(width, mult * model_channels, factor))
                width = mult * model_channels
                skips.append(width)
            if i < len(channel_mult) - 1:
                self.input_blocks.append(Stack([Downsample(width)]))
                skips.append(width)
                factor *= 2
        self.middle_block = Stack(
            [
                ResBlock(width, width, emb_channels, dropout),
                AttentionBlock(width, head_channels),
                ResBlock(width, width, emb_channels, dropout),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for i, mult in reversed(list(enumerate(channel_mult))):
            for j in range(num_res_blocks + 1):
                stack = level(width + skips.pop(), mult * model_channels, factor)
                width = mult * model_channels
                if i > 0 and j == num_res_blocks:
                    stack.append(Upsample(width))
                    factor //= 2
                self.output_blocks.append(stack)
        self.out = nn.Sequential(
            group_norm(width, EPS), nn.SiLU(), zero_init(nn.Conv2d(width, in_channels, 3, padding=1))
        )

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        f = self.downsample_factor
        if x_t.shape[-1] % f or x_t.shape[-2] % f:
            raise ValueError(f"latent size {tuple(x_t.shape[-2:])} is not a multiple of the U-Net's factor {f}")
        if y is None:
            y = torch.full((len(x_t),), self.null_class, device=x_t.device)
        emb = self.time_embed(time_embedding(t, self.model_channels).to(x_t.dtype)) + self.label_emb(y)  # [B, 4 mc]
        h, skips = x_t, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)
