"""U-Nets: CompVis' checkpoints (the average if they have one), diffusers' UNet2DModel and UNet2DConditionModel."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.exchange.weight_files import CONFIG, State, fill, read_diffusers_weights, read_tensors, write_diffusers
from ldm.models.unet import UNet
from ldm.runtime.files import read_json

PREFIX, LABELS = "model.diffusion_model.", "cond_stage_model.embedding.weight"

# a layer's names in LDM and in diffusers
LEAVES = (
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
    ("op.", "conv."),
)
ENDS = (
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("label_emb.", "class_embedding."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
)
# what LDM's architecture takes for granted and diffusers' configs may change
GRANTED = {
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "center_input_sample": False,
    "add_attention": True,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "class_embed_type": None,
    "addition_embed_type": None,
    "only_cross_attention": False,
}


def blocks(shape: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each layer's name in LDM and in diffusers, with a dot at the end."""
    levels, number = len(shape["channel_mult"]), shape["num_res_blocks"]
    attends = [2**i in shape["attention_resolutions"] for i in range(levels)]
    i = 0
    for level in range(levels):
        for j in range(number):
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
    for k in range(levels * (number + 1)):
        up, j = divmod(k, number + 1)
        attended = attends[levels - 1 - up]
        yield f"output_blocks.{k}.0.", f"up_blocks.{up}.resnets.{j}."
        if attended:
            yield f"output_blocks.{k}.1.", f"up_blocks.{up}.attentions.{j}."
        if j == number and up < levels - 1:
            yield f"output_blocks.{k}.{1 + attended}.", f"up_blocks.{up}.upsamplers.0."


def to_diffusers(state: State, shape: dict[str, Any]) -> State:
    """LDM's names and shapes -> diffusers'."""
    theirs = {new + k.removeprefix(old): v for old, new in ENDS for k, v in state.items() if k.startswith(old)}
    for old, new in blocks(shape):
        for key, tensor in ((k.removeprefix(old), v) for k, v in state.items() if k.startswith(old)):
            if key.startswith("qkv."):
                for name, part in zip("qkv", _split(tensor, _heads(shape, len(tensor) // 3)), strict=True):
                    theirs[f"{new}to_{name}.{key[4:]}"] = part
            elif ".attentions." in new and shape.get("context_dim") is None:
                renamed = key.replace("proj_out.", "to_out.0.").replace("norm.", "group_norm.")
                theirs[new + renamed] = tensor.squeeze(-1) if key == "proj_out.weight" else tensor
            else:
                leaf = next((b + key.removeprefix(a) for a, b in LEAVES if key.startswith(a)), key)
                theirs[new + leaf] = tensor
    return theirs


def from_diffusers(state: State, shape: dict[str, Any]) -> State:
    """diffusers' names and shapes -> LDM's."""
    ours = {old + k.removeprefix(new): v for old, new in ENDS for k, v in state.items() if k.startswith(new)}
    for old, new in blocks(shape):
        layer = {k.removeprefix(new): v for k, v in state.items() if k.startswith(new)}
        if ".attentions." in new and shape.get("context_dim") is None:
            for kind in ("weight", "bias"):
                qkv = [layer.pop(f"to_{name}.{kind}") for name in "qkv" if f"to_{name}.{kind}" in layer]
                if len(qkv) == 3:
                    ours[f"{old}qkv.{kind}"] = _join(qkv, _heads(shape, len(qkv[0])))
            for key, tensor in layer.items():
                renamed = key.replace("to_out.0.", "proj_out.").replace("group_norm.", "norm.")
                ours[old + renamed] = tensor[..., None] if renamed == "proj_out.weight" else tensor
            continue
        for key, tensor in layer.items():
            changed = "down" in new and "samplers" in new and key.startswith("conv.")
            leaf = next((a + key.removeprefix(b) for a, b in LEAVES[:-1] if key.startswith(b)), key)
            linear = re.fullmatch(r"proj_(in|out)\.weight", key) and tensor.dim() == 2  # use_linear_projection
            ours[old + (key.replace("conv.", "op.") if changed else leaf)] = (
                tensor[..., None, None] if linear else tensor
            )
    return ours


def _heads(shape: dict[str, Any], channels: int) -> int:
    return shape["num_heads"] if shape.get("num_heads") is not None else channels // shape["head_channels"]


def _split(tensor: Tensor, heads: int) -> Iterator[Tensor]:
    """[heads (q k v) d, ...] -> three of [heads d, ...]; a 1x1 convolution becomes a linear map."""
    parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:2])  # [heads, 3, d] or [heads, 3, d, C]
    return (part.flatten(0, 1) for part in parts.unbind(1))


def _join(parts: list[Tensor], heads: int) -> Tensor:
    """The inverse of `_split`."""
    joined = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)
    return joined[..., None] if joined.dim() == 2 else joined


def import_unet(path: Path, heads: dict[str, int], null_class: bool) -> tuple[UNet, dict[str, Any], float | None]:
    """Read a .ckpt or .safetensors of a whole model, or a diffusers folder of a U-Net.

    Args:
        heads: {"head_channels": n} or {"num_heads": n}, which the weights of a CompVis file do not tell.

        null_class: whether the last row of the label table is the class "dropped", as in LDM's cin256; else a row of
            zeros is added for it.

    Returns:
        the network, its constructor's arguments, and the model's scale_factor, if it has one.

    Raises:
        ValueError: if the file is damaged, holds code, or holds no U-Net of LDM's or ADM's architecture.
    """
    factor = None
    if path.is_dir():
        folder = path / "unet" if (path / "unet" / CONFIG).exists() else path
        shape = shape_of_diffusers(read_json(folder / CONFIG), folder / CONFIG)
        state = from_diffusers(read_diffusers_weights(folder), shape)
    else:
        found = read_tensors(path)
        factor = float(found["scale_factor"]) if "scale_factor" in found else None
        state = {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}
        state = {k: found.get("model_ema.diffusion_model" + k.replace(".", ""), v) for k, v in state.items()}
        state |= {"label_emb.weight": found[LABELS]} if LABELS in found else {}
        shape = infer_shape(state, path, heads)
    if "label_emb.weight" not in state:  # a model without classes: no label moves anything
        state["label_emb.weight"] = torch.zeros(2, 4 * shape["model_channels"])
    elif not null_class:
        labels = state["label_emb.weight"]
        state["label_emb.weight"] = torch.cat([labels, torch.zeros_like(labels[:1])])
    shape |= {"num_classes": len(state["label_emb.weight"]) - 1, "time_offset": 1.0}
    model = UNet(**shape)
    fill(model, state, path, shape)
    return model, shape, factor


def infer_shape(state: State, path: Path, heads: dict[str, int]) -> dict[str, Any]:
    """The constructor's arguments of the U-Net whose weights these are, in LDM's names."""
    for name in ("input_blocks.0.0.weight", "out.2.weight", "middle_block.1.norm.weight"):
        if name not in state:
            raise ValueError(f"{path} lacks {PREFIX}{name}: it holds no U-Net of LDM's architecture")
    width, inputs = state["input_blocks.0.0.weight"].shape[:2]
    outputs, level, scale_shift = state["out.2.weight"].shape[0], 0, False
    mult: list[int] = []
    numbers: list[int] = []
    factors: list[int] = []
    count = sum(bool(re.fullmatch(r"input_blocks\.[1-9]\d*\.0\.(op|in_layers\.0)\.bias", k)) for k in state)
    ups = sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.bias", k)) for k in state)
    period = (count + 1) // (ups + 1) if ups else 0  # with resblock_updown, one in so many blocks changes resolution
    for i in range(1, 1 + count):
        if f"input_blocks.{i}.0.op.weight" in state or (period and i % period == 0):
            level += 1
            continue
        block = state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0]
        scale_shift = state[f"input_blocks.{i}.0.emb_layers.1.bias"].shape[0] == 2 * block
        mult[level:], numbers[level:] = [block // width], [numbers[level] + 1 if len(numbers) > level else 1]
        if f"input_blocks.{i}.1.norm.weight" in state and 2**level not in factors:
            factors.append(2**level)
    context = state.get("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    labels = state.get("label_emb.weight")
    shape: dict[str, Any] = {
        "in_channels": outputs,
        "model_channels": width,
        "channel_mult": mult,
        "num_res_blocks": numbers[0],
        "attention_resolutions": factors,
        **heads,
    }
    if context is not None:
        shape["context_dim"] = context.shape[1]
        if labels is not None and labels.shape[1] == context.shape[1]:
            shape["label_as"] = "context"
    shape |= {"concat_channels": inputs - outputs} if inputs > outputs else {}
    return shape | _if(scale_shift, "scale_shift") | _if(ups > 0, "resblock_updown")


def _if(wanted: bool, key: str) -> dict[str, bool]:
    return {key: True} if wanted else {}


def shape_of_diffusers(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The constructor's arguments of a diffusers U-Net's config.json."""
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        raise ValueError(f"{path} describes a {kind}, not a UNet2DModel or UNet2DConditionModel")
    for key, wanted in GRANTED.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"{path} has {key}={config[key]}; LDM's architecture has {wanted}")
    widths = config["block_out_channels"]
    heads = config.get("num_attention_heads") or config.get(
        "attention_head_dim"
    )  # in conditional ones, a number of heads
    if isinstance(heads, list):
        per_head = {width // number for width, number in zip(widths, heads, strict=True)}
        if len(per_head) != 1:
            raise ValueError(
                f"{path} has {heads} heads for {widths} channels: neither their number nor size is constant"
            )
        counted = {"head_channels": per_head.pop()}
    else:
        counted = {"num_heads": heads} if kind == "UNet2DConditionModel" else {"head_channels": heads}
    shape = {
        "in_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": [2**i for i, name in enumerate(config["down_block_types"]) if "Attn" in name],
        **counted,
    }
    if kind == "UNet2DConditionModel":
        shape["context_dim"] = config["cross_attention_dim"]
    extra = config["in_channels"] - config["out_channels"]
    shape |= {"concat_channels": extra} if extra > 0 else {}
    updown = config.get("downsample_type") == "resnet" or any("Resnet" in name for name in config["down_block_types"])
    return (
        shape
        | _if(config.get("resnet_time_scale_shift") == "scale_shift", "scale_shift")
        | _if(updown, "resblock_updown")
    )


def export_unet(model: UNet, shape: dict[str, Any], folder: Path, latent_size: int) -> None:
    """Write config.json and safetensors that diffusers' UNet2DModel or UNet2DConditionModel reads."""
    if shape.get("qk_norm") or shape.get("label_as") == "context":
        raise ValueError("diffusers' U-Nets have neither net.qk_norm nor a label among the context's tokens")
    widths = [shape["model_channels"] * m for m in shape["channel_mult"]]
    if any(width % 32 for width in widths):
        raise ValueError(f"diffusers' U-Nets have 32 groups in every norm; {widths} are no multiples of it")
    attends = [2**i in shape["attention_resolutions"] for i in range(len(widths))]
    conditional, updown = shape.get("context_dim") is not None, shape.get("resblock_updown", False)
    if updown and conditional:
        raise ValueError("diffusers' UNet2DConditionModel does not change resolution in blocks (net.resblock_updown)")
    name = "CrossAttn" if conditional else "Attn"
    plain = "Resnet{}sampleBlock2D" if updown else "{}Block2D"
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel" if conditional else "UNet2DModel",
        "_diffusers_version": "0.32.0",
        "sample_size": latent_size,
        "in_channels": shape["in_channels"] + shape.get("concat_channels", 0),
        "out_channels": shape["in_channels"],
        "block_out_channels": widths,
        "layers_per_block": shape["num_res_blocks"],
        "down_block_types": [f"{name}DownBlock2D" if a else plain.format("Down") for a in attends],
        "up_block_types": [f"{name}UpBlock2D" if a else plain.format("Up") for a in reversed(attends)],
        "num_class_embeds": shape["num_classes"] + 1,
        **({"downsample_type": "resnet", "upsample_type": "resnet"} if updown else {}),
        "resnet_time_scale_shift": "scale_shift" if shape.get("scale_shift") else "default",
    }
    if conditional:
        heads = [_heads(shape, width) for width in widths]
        config |= {"attention_head_dim": heads, "cross_attention_dim": shape["context_dim"]}
    else:
        sizes = {width // _heads(shape, width) for width in widths}
        if len(sizes) > 1:
            raise ValueError("diffusers' UNet2DModel wants heads of one size: net.head_channels, not net.num_heads")
        config |= {"attention_head_dim": sizes.pop()} | (
            {"attn_norm_num_groups": 32} if shape.get("scale_shift") else {}
        )
    write_diffusers(folder, config, to_diffusers(model.state_dict(), shape))
