"""DiT: the diffusion transformer (Peebles & Xie 2023), in the names of its authors' code."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.condition import Condition
from ldm.models.dit_layers import (
    DiTBlock,
    Norm,
    coordinates,
    modulate,
    norm_of,
    rotations,
    sinusoidal_positions,
)
from ldm.models.embedding import TIME_SCALE, CodeEmbedding, ScalarEmbedding, time_embedding, told_further
from ldm.models.layers import parts_taken, put_beside, zero_init
from ldm.models.text_transformer import embedded, encoder_of, pooled_of
from ldm.runtime.ranges import Count, Natural, Positive

TIME_CHANNELS = 256  # of the sinusoids of the time
INIT_STD = 0.02  # of the embeddings


class DiT(nn.Module):
    """A transformer over the patches of a latent, under the embedding of time and label (Peebles & Xie 2023).

    net(x_t [B, C, h, w], t [B] in [0, 1], condition) -> [B, C, h, w]: what the objective regresses, as for the U-Net. h
    and w must be multiples of `patch` (ValueError otherwise); of another size than `latent_size`, the positions are
    interpolated. Options beyond DiT are those of LightningDiT (Yao & Wang 2025): rotary positions, RMSNorm, SwiGLU and
    qk_norm.

    Args:
        in_channels:     C, the latent's channels, in and out
        num_classes:     K; labels are 0 ... K - 1, and K itself, `null_class`, stands for no label
        latent_size:     h and w in training
        patch:           side of a patch: 1 or 2 for latents
        model_channels:  channels of a token
        depth:           blocks
        head_channels:   channels of an attention head
        mlp_ratio:       hidden channels of an MLP, in model_channels
        positions:       "sincos" is added to the tokens; "rotary" turns queries and keys instead
        norm:            "layer", or "rms"
        norm_eps:        of the norm before an MLP; 1e-5 in weights that diffusers publishes
        mlp:             "gelu", or "swiglu" of as many weights
        qk_norm:         normalise queries and keys (root mean square, learned scale), for half precision
        context_dim:     channels of a context token; None: it takes none
        text:            of a network that reads tokens itself: the arguments of its `TextTransformer`, whose width is
                         context_dim; None where the context is embeddings
        context_pooled:  the mean of the context's tokens is told beside the time, too: see `PooledContext`
        context_as:      "cross": every block attends to the context; "joint": its tokens go through all blocks beside
                         those of the latent
        concat_channels: channels of the condition beside x_t; 0 for none
        second_time:     it takes s [B], too, where t - s is embedded; the embedding starts at zero
        takes_guidance:  it takes a scale of guidance w [B], too, likewise
        codes:           K: x_t are codes, long [B, 1, h, w], below 0 where one is hidden, and the output their logits
                         [B, K, h, w]; 0: it is as above
        time_offset:     the network sees the timestep 1000 t - time_offset; 1 for published weights, which count from 0
        time_periods:    the longest period of the time's sinusoids: "diffusers" includes 2 pi 1e4, "dit" does not
        checkpoint:      recompute activations in the backward pass: less memory for about a third more time
    """

    def __init__(
        self,
        *,
        in_channels: Count,
        num_classes: Natural,
        latent_size: Annotated[Sequence[Count], Len(2, 2)],
        patch: Count,
        model_channels: Count,
        depth: Count,
        head_channels: Count,
        mlp_ratio: Positive = 4.0,
        positions: Literal["sincos", "rotary"] = "sincos",
        norm: Norm = "layer",
        norm_eps: Positive = 1e-6,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        qk_norm: bool = False,
        context_dim: Count | None = None,
        text: dict[str, int] | None = None,
        context_pooled: bool = False,
        context_as: Literal["cross", "joint"] = "cross",
        concat_channels: Natural = 0,
        second_time: bool = False,
        takes_guidance: bool = False,
        codes: Natural = 0,
        time_offset: float = 0.0,
        time_periods: Literal["dit", "diffusers"] = "diffusers",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if model_channels % head_channels or head_channels % 4:
            raise ValueError(
                f"net.head_channels={head_channels} must be a multiple of 4 that divides "
                f"net.model_channels={model_channels}"
            )
        if any(side % patch for side in latent_size):
            raise ValueError(f"net.patch={patch} does not divide latents of {' x '.join(map(str, latent_size))}")
        self.in_channels, self.null_class, self.downsample_factor = in_channels, num_classes, patch
        self.trained = (latent_size[0] // patch, latent_size[1] // patch)
        self.model_channels, self.head_channels, self.positions = model_channels, head_channels, positions
        self.concat_channels, self.time_offset, self.time_periods = concat_channels, time_offset, time_periods
        self.checkpoint, self.takes_guidance = checkpoint, takes_guidance
        # modules in dictionaries have their names in the authors' code
        self.code_embed = CodeEmbedding(codes, model_channels) if codes else None
        in_channels, out_channels = (model_channels, codes) if codes else (in_channels, in_channels)
        stem = nn.Conv2d(in_channels + concat_channels, model_channels, patch, stride=patch)
        self.x_embedder = nn.ModuleDict({"proj": stem})
        layers = nn.Linear(TIME_CHANNELS, model_channels), nn.SiLU(), nn.Linear(model_channels, model_channels)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(*layers)})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, model_channels)})
        self.second_embed = ScalarEmbedding(TIME_CHANNELS, model_channels) if second_time else None
        self.guidance_embed = ScalarEmbedding(TIME_CHANNELS, model_channels) if takes_guidance else None
        self.pooled_embed = pooled_of(context_dim, context_pooled, model_channels)
        joint = context_dim is not None and context_as == "joint"
        self.context_in = nn.Linear(context_dim, model_channels) if context_dim is not None and joint else None
        self.takes_context, self.text = context_dim is not None, None
        self.blocks = nn.ModuleList(
            DiTBlock(
                model_channels,
                model_channels // head_channels,
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                norm=norm,
                eps=norm_eps,
                qk_norm=qk_norm,
                context_dim=None if joint else context_dim,
            )
            for _ in range(depth)
        )
        self.final_layer = nn.ModuleDict(
            {
                "norm_final": norm_of(norm, model_channels),
                "linear": nn.Linear(model_channels, patch * patch * out_channels),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(model_channels, 2 * model_channels)),
            }
        )
        self._init_weights()
        self.text = encoder_of(context_dim, text)  # after what is Xavier's: its weights are its own

    def _init_weights(self) -> None:
        """As DiT does: Xavier's for what is linear, small embeddings, zero for what ends a branch."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.startswith(("y_embedder.", "t_embedder.")) and name.endswith(".weight"):
                nn.init.normal_(parameter, std=INIT_STD)
        for embedding in (self.second_embed, self.guidance_embed, self.pooled_embed):
            if embedding is not None:
                zero_init(embedding[2])
        for block in self.blocks:
            block.start_as_identity()  # type: ignore[operator]
        zero_init(self.final_layer["adaLN_modulation"])
        zero_init(self.final_layer["linear"])

    @property
    def takes(self) -> tuple[str, ...]:
        """The parts of a condition that it was built for."""
        return parts_taken(
            context=self.takes_context,
            concat=self.concat_channels > 0,
            second_time=self.second_embed is not None,
            guidance=self.guidance_embed is not None,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor) -> Tensor:
        p = self.downsample_factor
        if x_t.shape[-1] % p or x_t.shape[-2] % p:
            raise ValueError(f"latent size {tuple(x_t.shape[-2:])} is not a multiple of the DiT's patch {p}")
        condition = Condition.of(condition)
        condition.refuse("the DiT", self.takes)
        condition = embedded(condition, self.text)
        if (condition.context is None) == self.takes_context:
            raise ValueError("the network wants a context exactly where net.context_dim is given")
        x_t = x_t if self.code_embed is None else self.code_embed(x_t)
        x = self.x_embedder["proj"](put_beside(x_t, condition.concat, self.concat_channels))  # [B, D, h / p, w / p]
        height, width = x.shape[-2:]
        at = coordinates(height, width, self.trained, x.device)
        # [B, L, D] in the input's type: under autocast, 8 bits would round what each block adds
        x, by = x.flatten(2).transpose(1, 2).to(x_t.dtype), None
        if self.positions == "sincos":
            x = x + sinusoidal_positions(at, self.model_channels).to(x.dtype)
        else:
            by = rotations(at, self.head_channels)
        emb = self._embed(t, condition, x_t.dtype)
        context, mask = condition.context, condition.mask
        mask = None if mask is None else mask[:, None, None]  # [B, 1, 1, L']: of all heads and queries
        if self.context_in is not None:
            x, by, mask = self._joined(x, context, by, mask)
        for block in self.blocks:
            told = (x, emb, by, mask, context)
            recompute = self.checkpoint and torch.is_grad_enabled()
            x = checkpoint(block, *told, use_reentrant=False) if recompute else block(*told)
        shift, scale = self.final_layer["adaLN_modulation"](emb).chunk(2, dim=1)
        x = modulate(self.final_layer["norm_final"](x[:, : height * width]), shift, scale)
        x = self.final_layer["linear"](x)  # [B, L, p p C]
        x = x.unflatten(2, (p, p, -1)).unflatten(1, (height, width))  # [B, h / p, w / p, p, p, C]
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *x_t.shape[2:])

    def _embed(self, t: Tensor, condition: Condition, dtype: torch.dtype) -> Tensor:
        """The embedding [B, D] of times, label and what else is told."""
        time = time_embedding(t - self.time_offset / TIME_SCALE, TIME_CHANNELS, self.time_periods == "diffusers")
        emb = self.t_embedder["mlp"](time.to(dtype)) + self.y_embedder["embedding_table"](condition.label)
        if self.pooled_embed is not None and condition.context is not None:
            emb = emb + self.pooled_embed(condition.context, condition.mask)
        return told_further(emb, t, condition.s, condition.w, self.second_embed, self.guidance_embed)

    def _joined(
        self, x: Tensor, context: Tensor | None, by: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The latent's tokens with the context's after them, which turn by nothing, and whose mask is theirs alone."""
        assert self.context_in is not None
        assert context is not None
        more = self.context_in(context)
        if by is not None:
            still = torch.ones_like(by[:, :1]) * by.new_tensor([1.0, 0.0])[:, None, None]  # cos and sin of no angle
            by = torch.cat([by, still.expand(-1, more.shape[1], -1)], dim=1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(*mask.shape[:3], x.shape[1]), mask], dim=3)
        return torch.cat([x, more], dim=1), by, mask
