"""The text encoder that is trained with the network which attends to it."""

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.models.dit_layers import Mlp, SelfAttention
from ldm.models.layers import zero_init
from ldm.runtime.ranges import Count, Natural, checked

HEAD = 64  # channels of an attention head at most
INIT_STD = 0.02  # of the embeddings


class TextBlock(nn.Module):
    """Self-attention among the tokens that are there, and an MLP, each after a norm; it starts as the identity."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.mlp = SelfAttention(channels, num_heads, qk_norm=False), Mlp(channels, 4 * channels)
        zero_init(self.attn.proj)
        zero_init(self.mlp.fc2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), None, mask)
        return x + self.mlp(self.norm2(x))


class TextTransformer(nn.Module):
    """Tokens [B, L] -> embeddings [B, L, width]: like LDM's encoder of captions, a transformer over learned embeddings
    of tokens and places (Rombach et al. 2022, section 4.3.1).

    Args:
        width:      channels of an embedding
        vocabulary: tokens that there are
        tokens:     L at most
        depth:      blocks; 0 is the embeddings alone
    """

    @checked
    def __init__(self, *, width: Count, vocabulary: Count, tokens: Count, depth: Natural) -> None:
        super().__init__()
        heads = max(1, width // HEAD)
        if width % heads:
            raise ValueError(f"condition.width={width} must be a multiple of {HEAD}, or less than {2 * HEAD}")
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(torch.randn(tokens, width) * INIT_STD)
        nn.init.normal_(self.token_embedding.weight, std=INIT_STD)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """mask, bool [B, L]: which tokens are there; the others are attended to by none."""
        x = self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]]
        present = None if mask is None else mask[:, None, None]  # [B, 1, 1, L]: of all heads and queries
        for block in self.blocks:
            x = block(x, present)
        return self.norm(x)


class PooledContext(nn.Sequential):
    """The mean of the tokens that are there, [B, L, D] -> [B, E], as a part of the time's embedding, so that every
    layer is told what a text says as a whole (GLIDE: Nichol et al. 2022; SD3: Esser et al. 2024); it starts at zero."""

    def __init__(self, context_dim: int, emb_channels: int) -> None:
        last = zero_init(nn.Linear(emb_channels, emb_channels))
        super().__init__(nn.Linear(context_dim, emb_channels), nn.SiLU(), last)

    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        if mask is None:
            return super().forward(context.mean(1))
        there = mask[:, :, None].to(context.dtype)
        return super().forward((context * there).sum(1) / there.sum(1).clamp(min=1))


def pooled_of(context_dim: int | None, pooled: bool, emb_channels: int) -> PooledContext | None:
    """What pools a network's context; None where nothing does."""
    if not pooled:
        return None
    if context_dim is None:
        raise ValueError("net.context_pooled pools a context, of which net.context_dim says the channels: give both")
    return PooledContext(context_dim, emb_channels)


def embedded(condition: Condition, text: TextTransformer | None) -> Condition:
    """A condition whose context is embeddings: tokens are read by the network's own encoder, if it has one.

    Raises:
        ValueError: if its context is tokens and the network has no encoder, or the other way round.
    """
    context = condition.context
    if context is None:
        return condition
    if context.is_floating_point() == (text is not None):
        wants = "tokens, long [B, L]" if text is not None else "embeddings, [B, L, D]"
        raise ValueError(f"the network wants a context of {wants}, not {context.dtype} {list(context.shape)}")
    return condition if text is None else condition._replace(context=text(context, condition.mask))


def encoder_of(context_dim: int | None, text: dict[str, int] | None) -> TextTransformer | None:
    """A network's own encoder of tokens, whose embeddings have context_dim channels; None where it has none."""
    if text is None:
        return None
    if context_dim is None:
        raise ValueError("net.text makes a context, of which net.context_dim says the channels: give both")
    return TextTransformer(width=context_dim, **text)
