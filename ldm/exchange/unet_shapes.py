"""The constructor's arguments of a U-Net: read off the weights of LDM and ADM, or off a diffusers config, and back."""

import math
import re
from pathlib import Path
from typing import Any

from ldm.exchange.diffusers_folders import UNetConfig
from ldm.exchange.unet_names import heads_of
from ldm.exchange.weight_files import State, dims
from ldm.models.dit import TIME_CHANNELS

KIND = "U-Net of LDM's or ADM's architecture"
GROUPS = 32  # of a norm in LDM, or their largest divisor that divides the channels


def infer_shape(state: State, path: Path, heads: dict[str, int]) -> dict[str, Any]:
    """The constructor's arguments of the U-Net whose weights these are, in LDM's names.

    Raises:
        ValueError: that names `path`, if they are no U-Net's.
    """
    _, model_channels = dims(state, "time_embed.0.weight", 2, path, KIND)
    stem_channels, inputs, *_ = dims(state, "input_blocks.0.0.weight", 4, path, KIND)
    outputs, *_ = dims(state, "out.2.weight", 4, path, KIND)
    dims(state, "middle_block.1.norm.weight", 1, path, KIND)
    if outputs > inputs:
        raise ValueError(
            f"{path} predicts {outputs} channels from {inputs}: neither an x0, eps or v, nor ADM's variance"
        )
    updown = any(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.bias", name) for name in state)
    levels = _levels(state, path, updown)
    widths = [dims(state, f"input_blocks.{blocks[0]}.0.out_layers.3.weight", 4, path, KIND)[0] for blocks in levels]
    attends = [f"input_blocks.{blocks[0]}.1.norm.weight" in state for blocks in levels]
    (embedded,) = dims(state, f"input_blocks.{levels[0][0]}.0.emb_layers.1.bias", 1, path, KIND)
    shape: dict[str, Any] = {
        "in_channels": outputs,
        "model_channels": model_channels,
        "channel_mult": multipliers(widths, model_channels),
        "num_res_blocks": len(levels[0]),
        "attention_resolutions": [2**level for level, attended in enumerate(attends) if attended],
        **heads,
    }
    shape |= {"stem_channels": stem_channels} if stem_channels != model_channels else {}
    shape |= _condition(state, path)
    shape |= {"concat_channels": inputs - outputs} if inputs > outputs else {}
    convolves = any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in state)
    return shape | {
        key: value
        for key, value, ordinary in (
            ("scale_shift", embedded == 2 * widths[0], False),
            ("resblock_updown", updown, False),
            ("conv_resample", convolves or updown or len(levels) == 1, True),
        )
        if value != ordinary
    }


def _levels(state: State, path: Path, updown: bool) -> list[list[int]]:
    """The numbers of the input blocks that are residual blocks of one resolution, level by level.

    Between levels stands a block that halves the resolution: a convolution, nothing that has weights
    (conv_resample=False), or (resblock_updown) a residual block, which only its regular place tells from the others.
    """
    residual = {int(m[1]) for k in state if (m := re.fullmatch(r"input_blocks\.(\d{1,3})\.0\.in_layers\.0\.bias", k))}
    if not residual:
        raise ValueError(f"{path} lacks input_blocks.1.0.in_layers.0.bias: it holds no {KIND}")
    last, halving = max(residual), set()
    if updown:
        ups = sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.bias", k)) for k in state)
        period = max(1, (last + 1) // (ups + 1))
        halving = {i for i in residual if i % period == 0}
    levels: list[list[int]] = [[]]
    for i in range(1, last + 1):
        if i in residual - halving:
            levels[-1].append(i)
        else:
            levels.append([])
    if not all(levels):
        raise ValueError(f"{path} has a level without a residual block: it holds no {KIND}")
    return levels


def _condition(state: State, path: Path) -> dict[str, Any]:
    name = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    if name not in state:
        return {}
    _, context_dim = dims(state, name, 2, path, KIND)
    is_token = "label_emb.weight" in state and dims(state, "label_emb.weight", 2, path, KIND)[1] == context_dim
    return {"context_dim": context_dim} | ({"label_as": "context"} if is_token else {})


def multipliers(widths: list[int], unit: int) -> list[float]:
    """Widths in units of the first: whole numbers where they are."""
    return [width // unit if width % unit == 0 else width / unit for width in widths]


def shape_of_diffusers(config: UNetConfig, path: Path) -> dict[str, Any]:
    """The constructor's arguments of a diffusers U-Net by its config.json, at `path`."""
    widths = config.block_out_channels
    shape: dict[str, Any] = {
        "in_channels": config.out_channels,
        "model_channels": widths[0],
        "channel_mult": multipliers(widths, widths[0]),
        "num_res_blocks": config.layers_per_block,
        "attention_resolutions": [2**i for i, name in enumerate(config.down_block_types) if "Attn" in name],
        **_heads_of_diffusers(config, path),
    }
    if config.conditional:
        shape["context_dim"] = config.cross_attention_dim
    extra = config.in_channels - config.out_channels
    shape |= {"concat_channels": extra} if extra > 0 else {}
    shape |= {"scale_shift": True} if config.resnet_time_scale_shift == "scale_shift" else {}
    updown = config.downsample_type == "resnet" or any("Resnet" in name for name in config.down_block_types)
    return shape | ({"resblock_updown": True} if updown else {})


def _heads_of_diffusers(config: UNetConfig, path: Path) -> dict[str, Any]:
    """num_heads or head_channels; what conditional models call attention_head_dim is a number of heads."""
    heads, widths = config.heads, config.block_out_channels
    if isinstance(heads, list):
        sizes = {width / number for width, number in zip(widths, heads, strict=True)}
        if len(sizes) != 1 or not (size := sizes.pop()).is_integer():
            raise ValueError(
                f"{path} has {heads} heads for {widths} channels: neither their number nor size is constant"
            )
        return {"head_channels": int(size)}
    return {"num_heads" if config.conditional else "head_channels": heads}


def diffusers_config(shape: dict[str, Any], latent_size: int) -> tuple[dict[str, Any], dict[str, int]]:
    """A U-Net in diffusers' words.

    Returns:
        config.json of a UNet2DModel or UNet2DConditionModel, and what it has no key for: norm_groups and num_heads, to
        which the pipeline sets the network that it has loaded; {} where diffusers' class alone computes the same.

    Raises:
        ValueError: naming the key, for what diffusers has not.
    """
    refused = {"qk_norm": False, "stem_channels": None, "num_heads_upsample": None, "conv_resample": True, "codes": 0}
    for key, ordinary in refused.items():
        if shape.get(key, ordinary) != ordinary:
            raise ValueError(f"diffusers' U-Nets have no place for net.{key}={shape[key]}")
    if shape["channel_mult"][0] != 1:
        raise ValueError(
            f"diffusers' U-Nets begin at model_channels: net.channel_mult={shape['channel_mult']} must at 1"
        )
    widths = [round(shape["model_channels"] * mult) for mult in shape["channel_mult"]]
    attends = [2**i in shape["attention_resolutions"] for i in range(len(widths))]
    conditional, updown = shape.get("context_dim") is not None, shape.get("resblock_updown", False)
    if updown and conditional:
        raise ValueError("diffusers' UNet2DConditionModel does not change resolution in blocks (net.resblock_updown)")
    attention, plain = ("CrossAttn" if conditional else "Attn"), ("Resnet{}sampleBlock2D" if updown else "{}Block2D")
    groups = math.gcd(GROUPS, *widths)
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel" if conditional else "UNet2DModel",
        "_diffusers_version": "0.32.0",
        "sample_size": latent_size,
        "in_channels": shape["in_channels"] + shape.get("concat_channels", 0),
        "out_channels": shape["in_channels"],
        "block_out_channels": widths,
        "layers_per_block": shape["num_res_blocks"],
        "down_block_types": [f"{attention}DownBlock2D" if a else plain.format("Down") for a in attends],
        "up_block_types": [f"{attention}UpBlock2D" if a else plain.format("Up") for a in reversed(attends)],
        "resnet_time_scale_shift": "scale_shift" if shape.get("scale_shift") else "default",
        "norm_num_groups": groups,
    }
    config |= _labels(shape)
    config |= {"downsample_type": "resnet", "upsample_type": "resnet"} if updown else {}
    beyond = {"norm_groups": GROUPS} if groups != GROUPS else {}
    if conditional:
        heads = [heads_of(shape, width) for width in widths]
        return config | {"attention_head_dim": heads, "cross_attention_dim": shape["context_dim"]}, beyond
    attended = [*(width for width, a in zip(widths, attends, strict=True) if a), widths[-1]]  # and in the middle
    sizes = {width // heads_of(shape, width) for width in attended}
    config |= {"attention_head_dim": math.gcd(*sizes)}  # of heads of several sizes any divisor gives the same weights
    config |= {"attn_norm_num_groups": groups} if shape.get("scale_shift") else {}
    return config, beyond | ({"num_heads": shape["num_heads"]} if len(sizes) > 1 else {})


def further_config(shape: dict[str, Any]) -> dict[str, Any]:
    """config.json of the embeddings of a second time and of guidance, for which diffusers' U-Nets have no place and the
    pipeline has its own code; {} of a network without them."""
    further = further_keys(shape)
    told = {"_class_name": "FurtherEmbeddings", "channels": shape["model_channels"], **dict.fromkeys(further, True)}
    if "depth" in shape:  # a DiT, whose sinusoids are as many whatever its width
        told |= {"channels": TIME_CHANNELS, "embedded": shape["model_channels"]}
    return told if further else {}


def further_keys(shape: dict[str, Any]) -> list[str]:
    """What a U-Net is told beside time and label, in the words of its constructor."""
    return [key for key in ("second_time", "takes_guidance") if shape.get(key)]


def _labels(shape: dict[str, Any]) -> dict[str, Any]:
    """How labels come in: by an embedding beside the time's or, as the context's token, by a linear layer of one-hot
    labels, whose columns are the embeddings."""
    rows = shape["num_classes"] + 1
    if shape.get("label_as") == "context":
        return {"encoder_hid_dim": rows, "encoder_hid_dim_type": "text_proj"}
    return {"num_class_embeds": rows}
