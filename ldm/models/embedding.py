"""Numbers as embeddings: the time, and what else a sample is told."""

import math

import torch
from torch import Tensor, nn

from ldm.models.layers import zero_init

TIME_SCALE = 1000.0  # t in [0, 1] is embedded as LDM's timestep in [0, 1000]
GUIDANCE_SCALE = 0.1  # guidance of 1 to 11 is embedded as a time of 0 to 1


def time_embedding(t: Tensor, dim: int, last_included: bool = False) -> Tensor:
    """Sinusoids [cos, sin] of 1000 t with periods from 2 pi to 2 pi 1e4 (Vaswani et al. 2017): [B] -> [B, dim].

    last_included: whether the longest period is 2 pi 1e4 itself, as in diffusers' DiT, or the one that would follow
                   the last, as in LDM and in the first DiT
    """
    half = dim // 2
    indices = torch.arange(half, device=t.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(1e4) / (half - last_included) * indices)
    angles = TIME_SCALE * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ScalarEmbedding(nn.Sequential):
    """A further number a sample, [B] in about [0, 1], as an embedding [B, E] that starts at zero."""

    def __init__(self, dim: int, emb_channels: int) -> None:
        super().__init__(nn.Linear(dim, emb_channels), nn.SiLU(), zero_init(nn.Linear(emb_channels, emb_channels)))
        self.dim = dim

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        return super().forward(time_embedding(value, self.dim).to(dtype))


class CodeEmbedding(nn.Embedding):
    """Codes, long [B, 1, h, w], as vectors [B, E, h, w]; all below 0 are one, of a code that is not known."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__(codes + 1, channels)
        self.weight.is_table = True  # type: ignore[attr-defined]  # rows that have nothing to do with each other

    def forward(self, codes: Tensor) -> Tensor:
        return super().forward(codes[:, 0].clamp(min=-1) + 1).movedim(-1, 1)


def told_further(
    emb: Tensor,
    t: Tensor,
    s: Tensor | None,
    w: Tensor | None,
    second: ScalarEmbedding | None,
    guidance: ScalarEmbedding | None,
) -> Tensor:
    """An embedding [B, E] with those of the second time (None: s = t) and of guidance (None: w = 1), where they are."""
    if second is not None:
        emb = emb + second(torch.zeros_like(t) if s is None else t - s, emb.dtype)
    if guidance is not None:
        emb = emb + guidance(torch.zeros_like(t) if w is None else GUIDANCE_SCALE * (w - 1), emb.dtype)
    return emb
