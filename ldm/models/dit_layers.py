"""The layers of the diffusion transformer, in the names of its authors' code: positions, attention, blocks."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.attention import CrossAttention, attend, qk_norms
from ldm.models.layers import zero_init

EPS = 1e-6  # of every norm, unless it is said
Norm = Literal["layer", "rms"]


def coordinates(height: int, width: int, trained: tuple[int, int], device: torch.device) -> Tensor:
    """Rows and columns of patches, [2, height width], spread over as many as a network was trained on."""
    y, x = (torch.arange(n, device=device) * (base / n) for n, base in ((height, trained[0]), (width, trained[1])))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")).flatten(1)


def angles(positions: Tensor, dim: int) -> Tensor:
    """positions [N] x frequencies 1e4^(-i / dim), i < dim: [N, dim]."""
    frequencies = 1e4 ** (-torch.arange(dim, device=positions.device, dtype=torch.float32) / dim)
    return positions.float()[:, None] * frequencies


def sinusoidal_positions(at: Tensor, channels: int) -> Tensor:
    """[sin, cos] of the column, then of the row, a quarter of the channels each (He et al. 2022): [2, N] -> [N, C]."""
    of_row, of_column = (angles(one, channels // 4) for one in at)
    parts = [of_column.sin(), of_column.cos(), of_row.sin(), of_row.cos()]
    return torch.cat(parts, dim=1).float()


def rotations(at: Tensor, head_channels: int) -> Tensor:
    """[cos, sin] of the angles by which pairs of a head's channels turn, half of them by the column and half by the row
    (Su et al. 2021, axial as in Heo et al. 2024): [2, N] -> [2, N, head_channels / 2]."""
    turns = torch.cat([angles(one, head_channels // 4) for one in at.flip(0)], dim=1)
    return torch.stack([turns.cos(), turns.sin()]).float()


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Neighbouring pairs of channels of x [B, heads, L, d], turned by [cos, sin] of angles, [2, L, d / 2]."""
    cos, sin = by.to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def norm_of(kind: Norm, channels: int, eps: float = EPS) -> nn.Module:
    """A layer norm without parameters, which the modulation brings; or a root-mean-square norm with a scale."""
    return nn.LayerNorm(channels, elementwise_affine=False, eps=eps) if kind == "layer" else nn.RMSNorm(channels, eps)


class SelfAttention(nn.Module):
    """Attention of tokens [B, L, C] to each other."""

    def __init__(self, channels: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.qk_norm = qk_norms(qk_norm, channels // num_heads)

    def forward(self, x: Tensor, by: Tensor | None, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, d] each
        if len(self.qk_norm) > 0:
            q, k = self.qk_norm[0](q), self.qk_norm[1](k)
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        return self.proj(attend(q, k, v, nn.ModuleList(), mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Up, tanh's GELU, down."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """(silu(x W) x V) U, with two thirds of the hidden channels (Shazeer 2020)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        hidden = 2 * hidden // 3
        self.w12, self.w3 = nn.Linear(channels, 2 * hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, L, C] scaled and shifted by what the embedding says, [B, C] each."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class DiTBlock(nn.Module):
    """Self-attention, perhaps cross-attention, MLP, under adaLN-zero (Peebles & Xie 2023, section 3.2).

    Every branch starts at zero, so that a block starts as the identity.

    Args:
        channels:    of a token
        num_heads:   of attention
        mlp_ratio:   hidden channels of the MLP, in channels
        mlp:         "gelu", or "swiglu" of as many weights
        norm:        before each branch
        eps:         of the norm before the MLP
        qk_norm:     normalise queries and keys
        context_dim: channels of a context's tokens, to which it attends between the two; None: to none
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        mlp: str,
        norm: Norm,
        eps: float,
        qk_norm: bool,
        context_dim: int | None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of(norm, channels), norm_of(norm, channels, eps)
        self.attn = SelfAttention(channels, num_heads, qk_norm)
        hidden = int(mlp_ratio * channels)
        self.mlp = SwiGLU(channels, hidden) if mlp == "swiglu" else Mlp(channels, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))
        self.cross = None
        if context_dim is not None:
            self.norm_cross = norm_of(norm, channels)
            self.cross = CrossAttention(channels, num_heads, context_dim, qk_norm)
        self.start_as_identity()

    def start_as_identity(self) -> None:
        """Set what ends its branches to zero."""
        zero_init(self.adaLN_modulation)
        if self.cross is not None:
            zero_init(self.cross.to_out)

    def forward(self, x: Tensor, emb: Tensor, by: Tensor | None, mask: Tensor | None, context: Tensor | None) -> Tensor:
        """x [B, L, C] under emb [B, C]; by: see `rotate`; mask: of the context's tokens, or of x's own
        where those are among these."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(emb).chunk(6, dim=1)
        own = None if self.cross is not None else mask
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1), by, own))
        if self.cross is not None:
            x = x + self.cross(self.norm_cross(x), context, mask)
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))
