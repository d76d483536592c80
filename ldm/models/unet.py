"""The U-Net of LDM and ADM (Dhariwal & Nichol 2021; Rombach et al. 2022), in LDM's names."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.models.embedding import TIME_SCALE, CodeEmbedding, ScalarEmbedding, time_embedding, told_further
from ldm.models.layers import check_factors, group_norm, parts_taken, put_beside, zero_init
from ldm.models.text_transformer import embedded, encoder_of, pooled_of
from ldm.models.unet_layers import EPS, LayerMaker, Stack, Stem
from ldm.runtime.ranges import Blocks, Count, Fraction, Multipliers, Natural


class UNet(nn.Module):
    """ADM's U-Net, as LDM has it (Dhariwal & Nichol 2021, section 3; Rombach et al. 2022, appendix E).

    net(x_t [B, C, h, w], t [B] in [0, 1], condition) -> [B, C, h, w]: what the objective regresses. It never learns
    which path it serves. h and w must be multiples of `downsample_factor` (ValueError otherwise). Of the condition it
    takes the label and, as it was built, context [B, L, context_dim] with its mask, to which the transformers attend,
    concat [B, concat_channels, h, w], which is put beside x_t, the second time and the guidance; labels [B] alone may
    stand for it.

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
        text:                  arguments of the `TextTransformer` of width context_dim that reads tokens; None where the
                               context is embeddings
        context_pooled:        the mean of the context's tokens is told beside the time, too: see `PooledContext`
        label_as:              "embedding" adds the label's to the time's (ADM); "context" makes it a context token
        concat_channels:       channels of the condition beside x_t; 0 for none
        scale_shift:           ADM's adaptive group norm: see `ResBlock`
        resblock_updown:       change the resolution by residual blocks, as ADM does, not by plain layers
        conv_resample:         whether a convolution goes with each such plain layer
        qk_norm:               normalise queries and keys (root mean square, learned scale), for half precision
        second_time:           it takes s [B], too, where t - s is embedded; the embedding starts at zero
        takes_guidance:        it takes a scale of guidance w [B], too, likewise: a student that was taught to be guided
        codes:                 K: x_t are codes, long [B, 1, h, w], below 0 where one is hidden, and the output their
                               logits [B, K, h, w]; 0: it is as above
        time_offset:           the network sees the timestep 1000 t - time_offset; 1 for published weights, which count
                               from 0
        checkpoint:            recompute activations in the backward pass: less memory for about a third more time
    """

    def __init__(
        self,
        *,
        in_channels: Count,
        num_classes: Natural,
        model_channels: Count,
        channel_mult: Multipliers,
        num_res_blocks: Blocks,
        attention_resolutions: Sequence[Count],
        head_channels: Count | None = None,
        num_heads: Count | None = None,
        num_heads_upsample: Count | None = None,
        stem_channels: Count | None = None,
        dropout: Fraction = 0.0,
        context_dim: Count | None = None,
        text: dict[str, int] | None = None,
        context_pooled: bool = False,
        label_as: Literal["embedding", "context"] = "embedding",
        concat_channels: Natural = 0,
        scale_shift: bool = False,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        qk_norm: bool = False,
        second_time: bool = False,
        takes_guidance: bool = False,
        codes: Natural = 0,
        time_offset: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if (head_channels is None) == (num_heads is None):
            raise ValueError("net: give one of head_channels and num_heads, and leave the other null")
        if num_heads_upsample is not None and (num_heads is None or context_dim is not None):
            raise ValueError("net.num_heads_upsample goes with net.num_heads, and without a net.context_dim")
        check_factors("net", attention_resolutions, len(channel_mult))
        if label_as not in ("embedding", "context") or (label_as == "context" and context_dim is None):
            raise ValueError(f"net.label_as={label_as} must be embedding, or context with a context_dim")
        self.model_channels, self.null_class, self.time_offset = model_channels, num_classes, time_offset
        self.context_dim, self.label_as, self.concat_channels = context_dim, label_as, concat_channels
        self.checkpoint, self.text = checkpoint, encoder_of(context_dim, text)
        self.downsample_factor = 2 ** (len(channel_mult) - 1)
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.takes_guidance = takes_guidance
        self.second_embed = ScalarEmbedding(model_channels, emb_channels) if second_time else None
        self.guidance_embed = ScalarEmbedding(model_channels, emb_channels) if takes_guidance else None
        self.pooled_embed = pooled_of(context_dim, context_pooled, emb_channels)
        self.label_emb = nn.Embedding(num_classes + 1, emb_channels if label_as == "embedding" else context_dim or 0)
        make = LayerMaker(
            emb_channels=emb_channels,
            dropout=dropout,
            scale_shift=scale_shift,
            attention_resolutions=attention_resolutions,
            head_channels=head_channels,
            context_dim=context_dim,
            qk_norm=qk_norm,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
        )
        self.code_embed = CodeEmbedding(codes, model_channels) if codes else None
        in_channels, out_channels = (model_channels, codes) if codes else (in_channels, in_channels)
        stem = Stem(in_channels + concat_channels, stem_channels or model_channels, 3, padding=1)
        widths = [round(mult * model_channels) for mult in channel_mult]
        skips = self._way_down(make, stem, widths, num_res_blocks, num_heads)
        width = widths[-1]
        self.middle_block = Stack(
            [make.block(width, width), make.attention(width, num_heads), make.block(width, width)]
        )
        self._way_up(make, skips, widths, num_res_blocks, num_heads_upsample or num_heads)
        self.out = nn.Sequential(
            group_norm(widths[0], EPS), nn.SiLU(), zero_init(nn.Conv2d(widths[0], out_channels, 3, padding=1))
        )

    def _way_down(
        self, make: LayerMaker, stem: Stem, widths: list[int], num_res_blocks: int, num_heads: int | None
    ) -> list[int]:
        """Make the layers before the middle; returns the channels of what each of them passes to the way up."""
        width, skips = stem.out_channels, [stem.out_channels]
        self.input_blocks = nn.ModuleList([Stack([stem])])
        for i, level_width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(make.level(width, level_width, 2**i, num_heads))
                width = level_width
                skips.append(width)
            if i < len(widths) - 1:
                self.input_blocks.append(Stack([make.halving(width)]))
                skips.append(width)
        return skips

    def _way_up(
        self, make: LayerMaker, skips: list[int], widths: list[int], num_res_blocks: int, num_heads: int | None
    ) -> None:
        """Make the layers after the middle; each takes in what one on the way down has passed on, the last first."""
        width = widths[-1]
        self.output_blocks = nn.ModuleList()
        for i, level_width in reversed(list(enumerate(widths))):
            for j in range(num_res_blocks + 1):
                stack = make.level(width + skips.pop(), level_width, 2**i, num_heads)
                width = level_width
                if i > 0 and j == num_res_blocks:
                    stack.append(make.doubling(width))
                self.output_blocks.append(stack)

    @property
    def blocks(self) -> list[nn.Module]:
        """What is gathered, or compiled, one after the other: see `ldm.training.contract`."""
        return [module for module in self.modules() if isinstance(module, Stack)]

    @property
    def takes(self) -> tuple[str, ...]:
        """The parts of a condition that it was built for."""
        return parts_taken(
            context=self.context_dim is not None,
            concat=self.concat_channels > 0,
            second_time=self.second_embed is not None,
            guidance=self.guidance_embed is not None,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor) -> Tensor:
        f = self.downsample_factor
        if x_t.shape[-1] % f or x_t.shape[-2] % f:
            raise ValueError(f"latent size {tuple(x_t.shape[-2:])} is not a multiple of the U-Net's factor {f}")
        condition = Condition.of(condition)
        condition.refuse("the U-Net", self.takes)
        condition = embedded(condition, self.text)
        x_t = x_t if self.code_embed is None else self.code_embed(x_t)
        h = put_beside(x_t, condition.concat, self.concat_channels)
        emb, context, mask = self._embed(t, condition, x_t.dtype)
        emb = told_further(emb, t, condition.s, condition.w, self.second_embed, self.guidance_embed)
        recompute = self.checkpoint and torch.is_grad_enabled()
        skips = []
        for block in self.input_blocks:
            h = block(h, emb, context, mask, recompute)
            skips.append(h)
        h = self.middle_block(h, emb, context, mask, recompute)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context, mask, recompute)
        return self.out(h)

    def _embed(
        self, t: Tensor, condition: Condition, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The embedding [B, 4 model_channels] and the context, with its mask, that every layer is called with."""
        time = time_embedding(t - self.time_offset / TIME_SCALE, self.model_channels).to(dtype)
        emb, label = self.time_embed(time), self.label_emb(condition.label)
        context, mask = condition.context, condition.mask
        if self.pooled_embed is not None and context is not None:
            emb = emb + self.pooled_embed(context, mask)
        if self.label_as == "embedding":
            emb = emb + label
        else:
            context = label[:, None] if context is None else torch.cat([label[:, None], context], dim=1)
            mask = None if mask is None else torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        if (context is None) != (self.context_dim is None):
            raise ValueError("the network wants a context exactly where net.context_dim is given")
        return emb, context, None if mask is None else mask[:, None, None]  # [B, 1, 1, L]: of all heads and queries
