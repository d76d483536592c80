"""Attention of the U-Net: ADM's self-attention block and LDM's transformer with cross-attention, in LDM's names."""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.layers import group_norm, zero_init

EPS = 1e-5  # of ADM's norms
TRANSFORMER_EPS = 1e-6  # of the norm before a transformer, as in LDM


def attend(q: Tensor, k: Tensor, v: Tensor, qk_norm: nn.ModuleList, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, of [B, heads, L, d] each; qk_norm holds the norms of queries and keys, or none; mask,
    bool and broadcast to [B, heads, L, L'], says which keys are there."""
    if len(qk_norm) > 0:
        q, k = qk_norm[0](q), qk_norm[1](k)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def qk_norms(wanted: bool, head_channels: int) -> nn.ModuleList:
    """Root-mean-square norms of queries and keys (Henry et al. 2020, with a learned scale), where they are wanted."""
    return nn.ModuleList(nn.RMSNorm(head_channels, eps=1e-6) for _ in range(2 * wanted))


class AttentionBlock(nn.Module):
    """Self-attention over positions, added to the input; the projection of its output starts at zero."""

    def __init__(self, channels: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels, EPS)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.qk_norm = qk_norms(qk_norm, channels // num_heads)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.qkv(self.norm(x.flatten(2)))  # [B, heads (q k v) C/heads, hw]: heads first, then q, k, v, as in LDM
        h = h.unflatten(1, (self.num_heads, 3, -1)).transpose(3, 4)  # [B, heads, 3, hw, C/heads]
        q, k, v = h.contiguous().unbind(2)  # in other orders there is no fused kernel
        h = attend(q, k, v, self.qk_norm).transpose(2, 3)  # [B, heads, C/heads, hw]
        return x + self.proj_out(h.flatten(1, 2)).reshape(x.shape)


class CrossAttention(nn.Module):
    """Attention of tokens [B, L, C] to a context [B, M, context_dim], which may be the tokens themselves."""

    def __init__(self, channels: int, num_heads: int, context_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.qk_norm = qk_norms(qk_norm, channels // num_heads)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            f(of).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for f, of in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )  # [B, heads, L or M, C/heads]
        return self.to_out(attend(q, k, v, self.qk_norm, mask).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """x W gelu(x V) (Shazeer 2020)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back; net.1 is where LDM has a dropout of 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a layer norm."""

    def __init__(self, channels: int, num_heads: int, context_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, num_heads, channels, qk_norm)
        self.attn2 = CrossAttention(channels, num_heads, context_dim, qk_norm)
        self.ff = FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over positions (Rombach et al. 2022, app. E.2.1), added to the input; it starts at zero."""

    def __init__(self, channels: int, num_heads: int, context_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm = group_norm(channels, TRANSFORMER_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, context_dim, qk_norm)])
        self.proj_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # [B, hw, C]
        for block in self.transformer_blocks:
            h = block(h, context, mask)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
