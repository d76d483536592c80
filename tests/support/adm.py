"""The U-Net of ADM and CompVis once more, as its paper's appendix and checkpoints describe it: the oracle of imports.

It shares nothing with ldm/models: names and numbers of blocks are written out, attention is plain matrix products.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    return nn.GroupNorm(32, channels)


class Res(nn.Module):
    def __init__(self, channels, out, emb, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.ModuleList([norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)])
        self.emb_layers = nn.ModuleList([nn.SiLU(), nn.Linear(emb, 2 * out if scale_shift else out)])
        self.out_layers = nn.ModuleList([norm(out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)])
        if channels != out:
            self.skip_connection = nn.Conv2d(channels, out, 1)

    def resampled(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.resample == "up" else x

    def forward(self, x, emb):
        h = self.in_layers[2](self.resampled(F.silu(self.in_layers[0](x))))
        e = self.emb_layers[1](F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = torch.chunk(e, 2, 1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + e)
        h = self.out_layers[3](F.silu(h))
        x = self.resampled(x)
        return h + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class Attention(nn.Module):
    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb):
        batch, channels, *plane = x.shape
        qkv = self.qkv(self.norm(x.reshape(batch, channels, -1)))
        size = channels // self.heads
        outputs = []
        for head in range(self.heads):
            starts = [
                part * channels + head * size if self.new_order else (3 * head + part) * size for part in range(3)
            ]
            q, k, v = (qkv[:, start : start + size] for start in starts)
            weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(size), dim=-1)
            outputs.append(torch.einsum("bts,bcs->bct", weights, v))
        return x + self.proj_out(torch.cat(outputs, 1)).reshape(batch, channels, *plane)


class Down(nn.Module):
    def __init__(self, channels, convolution):
        super().__init__()
        if convolution:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x) if hasattr(self, "op") else F.avg_pool2d(x, 2)


class Up(nn.Module):
    def __init__(self, channels, convolution):
        super().__init__()
        if convolution:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.conv(x) if hasattr(self, "conv") else x


class AdmUNet(nn.Module):
    """Two resolutions, one residual block each (two upwards), attention at the second; (x, timestep, label).

    The first convolution is as wide as the first level (ADM) where no stem is given (CompVis: `channels`).
    """

    def __init__(
        self, *, mult, stem=None, channels=32, outputs=4, classes=5, heads=lambda width: 1, heads_up=None,
        new_order=False, convolution=True, scale_shift=False, updown=False,
    ):  # fmt: skip
        super().__init__()
        self.channels, emb = channels, 4 * channels
        a, b = (int(m * channels) for m in mult)
        heads_up, stem = heads_up or heads, stem or a

        def res(*widths, resample=None):
            return Res(*widths, emb, scale_shift, resample)

        def down(width):
            return res(width, width, resample="down") if updown else Down(width, convolution)

        def up(width):
            return res(width, width, resample="up") if updown else Up(width, convolution)

        def attention(width, heads):
            return Attention(width, heads(width), new_order)

        def blocks(*lists):
            return nn.ModuleList(nn.ModuleList(block) for block in lists)

        self.time_embed = nn.ModuleList([nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb)])
        self.label_emb = nn.Embedding(classes, emb)
        self.input_blocks = blocks(
            [nn.Conv2d(4, stem, 3, padding=1)], [res(stem, a)], [down(a)], [res(a, b), attention(b, heads)]
        )
        self.middle_block = nn.ModuleList([res(b, b), attention(b, heads), res(b, b)])
        self.output_blocks = blocks(
            [res(b + b, b), attention(b, heads_up)],
            [res(b + a, b), attention(b, heads_up), up(b)],
            [res(b + a, a)],
            [res(a + stem, a)],
        )
        self.out = nn.ModuleList([norm(a), nn.SiLU(), nn.Conv2d(a, outputs, 3, padding=1)])

    def forward(self, x, timestep, label):
        half = self.channels // 2
        angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed[0](torch.cat([torch.cos(angles), torch.sin(angles)], 1))
        emb = self.time_embed[2](F.silu(emb)) + self.label_emb(label)
        h, kept = self.input_blocks[0][0](x), []
        kept.append(h)
        for block in self.input_blocks[1:]:
            for layer in block:
                h = layer(h, emb)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, kept.pop()], 1)
            for layer in block:
                h = layer(h, emb)
        return self.out[2](F.silu(self.out[0](h)))
