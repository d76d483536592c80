"""Names and shapes of a U-Net's tensors in LDM (and ADM) and in diffusers, and how attention heads lie in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.exchange.weight_files import State

# a layer's names in LDM and in diffusers
LAYER_NAMES = (
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
)
DOWNSAMPLING_NAMES = ("op.", "conv.")  # upsampling is called conv by both
# what students are told further, in a module of its own there
FURTHER_NAMES = (
    ("second_embed.0.", "second_embedding.linear_1."),
    ("second_embed.2.", "second_embedding.linear_2."),
    ("guidance_embed.0.", "guidance_embedding.linear_1."),
    ("guidance_embed.2.", "guidance_embedding.linear_2."),
)
# what comes before and after the blocks
END_NAMES = (
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("label_emb.", "class_embedding."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
)


def block_names(shape: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each block's name in LDM and in diffusers, with a dot at the end."""
    levels, blocks_a_level = len(shape["channel_mult"]), shape["num_res_blocks"]
    attends = [2**level in shape["attention_resolutions"] for level in range(levels)]
    i = 0
    for level in range(levels):
        for j in range(blocks_a_level):
            i += 1
            yield f"input_blocks.{i}.0.", f"down_blocks.{level}.resnets.{j}."
            if attends[level]:
                yield f"input_blocks.{i}.1.", f"down_blocks.{level}.attentions.{j}."
        if level < levels - 1:
            i += 1
            yield f"input_blocks.{i}.0.", f"down_blocks.{level}.downsamplers.0."
    yield "middle_block.0.", "mid_block.resnets.0."
    yield "middle_block.1.", "mid_block.attentions.0."
    yield "middle_block.2.", "mid_block.resnets.1."
    for k in range(levels * (blocks_a_level + 1)):
        up, j = divmod(k, blocks_a_level + 1)
        attended = attends[levels - 1 - up]
        yield f"output_blocks.{k}.0.", f"up_blocks.{up}.resnets.{j}."
        if attended:
            yield f"output_blocks.{k}.1.", f"up_blocks.{up}.attentions.{j}."
        if j == blocks_a_level and up < levels - 1:
            yield f"output_blocks.{k}.{1 + attended}.", f"up_blocks.{up}.upsamplers.0."


def further_to_diffusers(state: State) -> State:
    """The embeddings of a second time and of guidance, under the names of `ldm.exchange.carried.further_embeddings`."""
    return _renamed(state, FURTHER_NAMES)


def _renamed(state: State, names: tuple[tuple[str, str], ...]) -> State:
    return {new + k.removeprefix(old): v for old, new in names for k, v in state.items() if k.startswith(old)}


def to_diffusers(state: State, shape: dict[str, Any]) -> State:
    """The same tensors under diffusers' names, in its shapes."""
    renamed = _renamed(state, END_NAMES)
    for old, new in block_names(shape):
        block = {k.removeprefix(old): v for k, v in state.items() if k.startswith(old)}
        if _is_plain_attention(new, shape):
            renamed |= {new + name: tensor for name, tensor in _attention_to_diffusers(block, shape).items()}
            continue
        pairs = [*LAYER_NAMES, DOWNSAMPLING_NAMES]
        for name, tensor in block.items():
            renamed[new + next((b + name.removeprefix(a) for a, b in pairs if name.startswith(a)), name)] = tensor
    if shape.get("label_as") == "context":
        table = renamed.pop("class_embedding.weight")
        renamed |= {"encoder_hid_proj.weight": table.T, "encoder_hid_proj.bias": table.new_zeros(table.shape[1])}
    return renamed


def from_diffusers(state: State, shape: dict[str, Any], path: Path) -> State:
    """The same tensors under LDM's names, in its shapes; those that no network of this shape has keep their names.

    Raises:
        ValueError: naming `path`, where queries, keys and values can't be joined.
    """
    blocks = list(block_names(shape))
    known = tuple(new for _, new in (*END_NAMES, *blocks))
    renamed = {name: tensor for name, tensor in state.items() if not name.startswith(known)}
    renamed |= {old + k.removeprefix(new): v for old, new in END_NAMES for k, v in state.items() if k.startswith(new)}
    for old, new in blocks:
        block = {k.removeprefix(new): v for k, v in state.items() if k.startswith(new)}
        if _is_plain_attention(new, shape):
            try:
                joined = _attention_from_diffusers(block, shape)
            except ValueError as error:
                raise ValueError(f"{path}: {new}{error}") from None
            renamed |= {old + name: tensor for name, tensor in joined.items()}
            continue
        pairs = [*LAYER_NAMES, *([DOWNSAMPLING_NAMES] if "downsamplers" in new else [])]
        for name, tensor in block.items():
            if re.fullmatch(r"proj_(in|out)\.weight", name) and tensor.dim() == 2:  # use_linear_projection
                tensor = tensor[..., None, None]
            renamed[old + next((a + name.removeprefix(b) for a, b in pairs if name.startswith(b)), name)] = tensor
    return renamed


def _is_plain_attention(diffusers_name: str, shape: dict[str, Any]) -> bool:
    return ".attentions." in diffusers_name and shape.get("context_dim") is None


def _attention_to_diffusers(block: State, shape: dict[str, Any]) -> State:
    renamed: State = {}
    for name, tensor in block.items():
        if name.startswith("qkv."):
            parts = split_heads(tensor, heads_of(shape, len(tensor) // 3))
            renamed |= {f"to_{letter}.{name[4:]}": part for letter, part in zip("qkv", parts, strict=True)}
        else:
            new = name.replace("proj_out.", "to_out.0.").replace("norm.", "group_norm.")
            renamed[new] = tensor.squeeze(-1) if name == "proj_out.weight" else tensor
    return renamed


def _attention_from_diffusers(block: State, shape: dict[str, Any]) -> State:
    renamed: State = {}
    for kind, rank in (("weight", 2), ("bias", 1)):
        parts = {name: block.pop(name) for name in (f"to_{letter}.{kind}" for letter in "qkv") if name in block}
        for name, part in parts.items():
            heads = heads_of(shape, len(part)) if part.dim() == rank else 0
            if heads < 1 or len(part) % heads or part.shape != next(iter(parts.values())).shape:
                raise ValueError(f"{name} is {list(part.shape)}, which no attention of such heads has")
        if len(parts) == 3:
            renamed[f"qkv.{kind}"] = join_heads(list(parts.values()), heads_of(shape, len(parts[f"to_q.{kind}"])))
    for name, tensor in block.items():
        new = name.replace("to_out.0.", "proj_out.").replace("group_norm.", "norm.")
        renamed[new] = tensor[..., None] if new == "proj_out.weight" else tensor
    return renamed


def heads_of(shape: dict[str, Any], channels: int, upwards: bool = False) -> int:
    """Heads of a level of so many channels, on the way up or on the way down."""
    if shape.get("num_heads") is None:
        return channels // shape["head_channels"]
    return (shape.get("num_heads_upsample") or shape["num_heads"]) if upwards else shape["num_heads"]


def split_heads(tensor: Tensor, heads: int) -> Iterator[Tensor]:
    """qkv with heads first, [heads (q k v) d, ...] -> q, k and v, [heads d, ...]; a 1x1 convolution becomes linear."""
    parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:2])  # [heads, 3, d] or [heads, 3, d, C]
    return (part.flatten(0, 1) for part in parts.unbind(1))


def join_heads(parts: list[Tensor], heads: int) -> Tensor:
    """The inverse of `split_heads`."""
    joined = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)
    return joined[..., None] if joined.dim() == 2 else joined


def heads_first(state: State, shape: dict[str, Any]) -> State:
    """A state in ADM's "new attention order", (q k v) heads d, as the legacy order that `AttentionBlock` has."""
    return {
        name: join_heads(
            [part.squeeze(-1) if part.dim() == 3 else part for part in tensor.chunk(3)],
            heads_of(shape, len(tensor) // 3, name.startswith("output_blocks.")),
        )
        if re.search(r"\.qkv\.(weight|bias)$", name)
        else tensor
        for name, tensor in state.items()
    }
