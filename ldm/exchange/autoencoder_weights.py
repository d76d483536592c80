"""Autoencoders: checkpoints of CompVis and Stable Diffusion, diffusers' AutoencoderKL and VQModel, and back.

The constructor's arguments are read off the weights' shapes, and every tensor must have its place.
"""

import re
from pathlib import Path
from typing import Any

import torch

from ldm.exchange.diffusers_folders import CONFIG, AutoencoderConfig, read_weights, write_diffusers
from ldm.exchange.weight_files import State, dims, fill, read_tensors, scale_factor
from ldm.latents import LOGVAR_RANGE, LatentStats
from ldm.models.autoencoder import Autoencoder

FIRST_STAGE_PREFIX = "first_stage_model."  # within a CompVis checkpoint of a whole latent diffusion model
CODEBOOK = "quantize.embedding.weight"  # of VQ autoencoders, in both codebases
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", CODEBOOK)
KIND = "autoencoder of LDM's architecture"

# diffusers' name -> LDM's, applied in turn; afterwards the numbers of `up` are reversed, for LDM counts from the end
RENAMES = (
    (r"\bdown_blocks\.(\d+)\.", r"down.\1."),
    (r"\bup_blocks\.(\d+)\.", r"up.\1."),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\bresnets\.(\d+)\.", r"block.\1."),
    (r"\battentions\.(\d+)\.", r"attn.\1."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
    (r"\bdownsamplers\.0\.", "downsample."),
    (r"\bupsamplers\.0\.", "upsample."),
    (r"\bconv_norm_out\.", "norm_out."),
    (r"\bgroup_norm\.", "norm."),
    (r"\b(?:to_q|query)\.", "q."),
    (r"\b(?:to_k|key)\.", "k."),
    (r"\b(?:to_v|value)\.", "v."),
    (r"\b(?:to_out\.0|proj_attn)\.", "proj_out."),
)


def import_autoencoder(path: Path) -> tuple[Autoencoder, dict[str, Any], dict[str, Any] | None]:
    """Read a .ckpt, .pt, .bin or .safetensors file, or a diffusers folder.

    Returns:
        the model, its constructor's arguments, and its scaling (see `export_diffusers`; None = it has none).

    Raises:
        ValueError: if the file is damaged, holds code, or holds no autoencoder of LDM's architecture.
    """
    if path.is_dir():
        shape, state, scaling = _read_diffusers(path)
    else:
        shape, state, scaling = _read_compvis(path)
    model = fill(lambda: Autoencoder(**shape), state, path, shape)
    assert isinstance(model, Autoencoder)
    return model, shape, scaling or None


def _read_diffusers(folder: Path) -> tuple[dict[str, Any], State, dict[str, Any]]:
    """Shape, weights in LDM's names, and scaling: of an autoencoder's folder, or of a pipeline's vae/."""
    folder = folder / "vae" if (folder / "vae" / CONFIG).exists() else folder
    if (folder / "checkpoints").is_dir() and not (folder / CONFIG).exists():
        raise ValueError(f"source={folder} is a run of ldm already: pass to=diffusers to export it")
    config = AutoencoderConfig.read(folder / CONFIG)
    state = from_diffusers(read_weights(folder))
    shape = infer_shape(state, folder)
    widths = [shape["channels"] * mult for mult in shape["channel_mult"]]
    for key, held in (
        ("latent_channels", shape["latent_channels"]),
        ("layers_per_block", shape["num_res_blocks"]),
        ("block_out_channels", widths),
    ):
        if getattr(config, key) not in (None, held):
            raise ValueError(
                f"{folder / CONFIG} has {key}={getattr(config, key)}, and its weights {held}: {config.fix}"
            )
    groups = {"norm_groups": config.norm_num_groups} if config.norm_num_groups != 32 else {}
    return shape | groups, state, config.scaling()


def _read_compvis(path: Path) -> tuple[dict[str, Any], State, dict[str, Any]]:
    """The same, of a file: of an autoencoder alone or of a whole model; averaged weights where there are both."""
    tensors = read_tensors(path)
    factor = scale_factor(tensors, path)
    scaling = {} if factor is None else {"scaling_factor": factor}
    if any(key.startswith("decoder.up_blocks.") for key in tensors):
        state = from_diffusers(tensors)
        return infer_shape(state, path), state, scaling
    prefix = FIRST_STAGE_PREFIX
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)} or tensors
    state = {k: v for k, v in state.items() if k.startswith(PARTS)}
    state = {k: tensors.get("model_ema." + k.replace(".", ""), v) for k, v in state.items()}
    return infer_shape(state, path), state, scaling


def infer_shape(state: State, path: Path) -> dict[str, Any]:
    """The constructor's arguments of the autoencoder whose weights these are, in LDM's names; errors name `path`."""

    def convolution(name: str) -> tuple[int, ...]:
        return dims(state, f"{name}.weight", 4, path, KIND)

    def count(pattern: str) -> int:
        return 1 + max((int(m[1]) for k in state if (m := re.match(pattern, k))), default=-1)

    channels, inputs, *_ = convolution("encoder.conv_in")
    convolution("encoder.down.0.block.0.conv1")
    levels = range(count(r"encoder\.down\.(\d{1,2})\."))
    widths = [convolution(f"encoder.down.{i}.block.0.conv1")[0] for i in levels]
    if "quant_conv.weight" not in state and "post_quant_conv.weight" not in state:
        _add_identities(state, convolution("decoder.conv_in")[1], 1 if CODEBOOK in state else 2)
    latent, moments = convolution("post_quant_conv")[1], convolution("quant_conv")
    codes = dims(state, CODEBOOK, 2, path, KIND) if CODEBOOK in state else None
    wanted = latent if codes else 2 * latent
    if moments[0] != wanted or moments[0] != moments[1]:
        raise ValueError(f"{path}: quant_conv maps {moments[1]} to {moments[0]} channels, not {wanted} to as many")
    if codes and codes[1] != latent:
        raise ValueError(f"{path}: codes of {codes[1]} channels are no latents of {latent}")
    if any(width % channels for width in widths):
        raise ValueError(f"{path}: the widths {widths} are no multiples of the first convolution's {channels}")
    return {
        "in_channels": inputs,
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_res_blocks": count(r"encoder\.down\.0\.block\.(\d{1,2})\."),
        "latent_channels": latent,
        "attention_resolutions": [2**i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in state],
        # how they were trained, they do not say; as taming's code does by default
        **({"variational": False, "quantizer": {"kind": "vq", "codes": codes[0], "legacy": True}} if codes else {}),
    }


def _add_identities(state: State, latent: int, times: int) -> None:
    """Add the 1x1 convolutions that newer autoencoders (SD 3, Flux) do not have, as identities."""
    for name, channels in (("quant_conv", times * latent), ("post_quant_conv", latent)):
        state[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
        state[f"{name}.bias"] = torch.zeros(channels)


def from_diffusers(state: State) -> State:
    """The same tensors under LDM's names, in its shapes."""
    renamed, levels = {}, 1 + max((int(m[1]) for k in state if (m := re.search(r"up_blocks\.(\d+)\.", k))), default=0)
    for key, tensor in state.items():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"\bup\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name)
        if re.search(r"\.(q|k|v|proj_out)\.weight$", name) and tensor.dim() == 2:
            tensor = tensor[:, :, None, None]  # a linear layer there, a 1x1 convolution here
        renamed[name] = tensor
    return renamed


def to_diffusers(state: State, levels: int) -> State:
    """The same tensors under diffusers' names, in its shapes."""
    renamed = {}
    for key, tensor in state.items():
        name = re.sub(r"\bup\.(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", key)
        name = re.sub(r"\bdown\.(\d+)\.", r"down_blocks.\1.", name)
        name = name.replace("mid.block_1.", "mid_block.resnets.0.").replace("mid.block_2.", "mid_block.resnets.1.")
        name = re.sub(r"\bblock\.(\d+)\.", r"resnets.\1.", name).replace("nin_shortcut.", "conv_shortcut.")
        name = name.replace("downsample.", "downsamplers.0.").replace("upsample.", "upsamplers.0.")
        name = re.sub(r"\bnorm_out\.", "conv_norm_out.", name)
        if re.search(r"\battn(_1)?\.", name):
            name = name.replace("mid.attn_1.", "mid_block.attentions.0.")
            name = re.sub(r"\battn\.(\d+)\.", r"attentions.\1.", name)
            name = re.sub(r"\.norm\.", ".group_norm.", name).replace(".proj_out.", ".to_out.0.")
            name = re.sub(r"\.([qkv])\.", r".to_\1.", name)
            tensor = tensor[:, :, 0, 0] if tensor.dim() == 4 else tensor
        renamed[name] = tensor
    return renamed


def normalising(state: State, stats: dict[str, Any]) -> tuple[dict[str, Any], State]:
    """By what diffusers normalises latents as a card's stats do: the scaling of `diffusers_config`, and weights, which
    hold a whitening, and then mean and deviation, too."""
    found = LatentStats.of(stats)
    if found.whitening is None:
        # diffusers computes (z - mean) / std x factor where it finds both
        return {"latents_mean": stats["mean"], "latents_std": stats["std"], "scaling_factor": 1.0}, state
    channels = len(stats["mean"])
    plain = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels, "scaling_factor": 1.0}
    return plain, _whitened(state, found)


def _whitened(state: State, stats: LatentStats) -> State:
    """The weights of an autoencoder whose latents are normalised, and whitened, already: those of one with a posterior,
    of which the mean alone is kept (no network says what a whitened latent's deviations are; they are fitted to 0)."""
    assert stats.whitening is not None
    scale = stats.std.double()
    into = stats.whitening.double() / scale  # latent = into (z - mean)
    back, shift = torch.linalg.inv(into), stats.mean.double()
    weight, bias = (state[f"quant_conv.{name}"].double() for name in ("weight", "bias"))
    channels = len(scale)
    means = torch.einsum("dc,cehw->dehw", into, weight[:channels]), into @ (bias[:channels] - shift)
    after = state["post_quant_conv.weight"].double()
    folded = {
        "quant_conv.weight": torch.cat([means[0], torch.zeros_like(weight[channels:])]),
        "quant_conv.bias": torch.cat([means[1], torch.full_like(bias[channels:], LOGVAR_RANGE[0])]),
        "post_quant_conv.weight": torch.einsum("dchw,ce->dehw", after, back),
        "post_quant_conv.bias": state["post_quant_conv.bias"].double() + after[:, :, 0, 0] @ shift,
    }
    return state | {name: tensor.to(state[name]) for name, tensor in folded.items()}


def export_diffusers(
    model: Autoencoder, shape: dict[str, Any], scaling: dict[str, Any], folder: Path, resolution: int | None
) -> None:
    """Write config.json and safetensors that `diffusers.AutoencoderKL.from_pretrained(folder)` reads, or VQModel's.

    The arguments and errors are those of `diffusers_config`.
    """
    config = diffusers_config(model, shape, scaling, resolution)
    held = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    write_diffusers(folder, config, to_diffusers(held, len(shape["channel_mult"])))


def diffusers_config(
    model: Autoencoder, shape: dict[str, Any], scaling: dict[str, Any], resolution: int | None
) -> AutoencoderConfig:
    """An autoencoder in diffusers' words: config.json of an AutoencoderKL, or of a VQModel.

    Args:
        model:      the autoencoder.
        shape:      its constructor's arguments.
        scaling:    diffusers' latents_mean and latents_std, [C] each, or scaling_factor (and shift_factor).
        resolution: side of the images that it was trained on, in pixels; None = unknown, 256 is written.

    Raises:
        ValueError: if diffusers has no such autoencoder; names the option.
    """
    book = shape.get("quantizer")
    if book is not None and (book["kind"] != "vq" or book.get("cosine")):
        raise ValueError("diffusers' VQModel has codes by distance alone (regularizer=vq): these are others")
    if book is not None and set(scaling) != {"scaling_factor"}:
        raise ValueError("diffusers' VQModel scales its latents by one factor: pass scaling_factor=, which is 1 in LDM")
    if not model.variational and book is None:
        raise ValueError("this is a plain autoencoder (regularizer=none): diffusers' AutoencoderKL wants a posterior")
    if shape.get("shortcut"):
        raise ValueError(
            "this autoencoder has autoencoder.shortcut=true, for which diffusers' AutoencoderKL has no place"
        )
    widths = [shape["channels"] * m for m in shape["channel_mult"]]
    groups = shape.get("norm_groups", 32)
    if any(width % groups for width in widths):
        raise ValueError(f"diffusers' AutoencoderKL has {groups} groups in every norm; {widths} are no multiples of it")
    attends = [2**i in shape.get("attention_resolutions", ()) for i in range(len(widths))]
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL" if book is None else "VQModel",
        "_diffusers_version": "0.32.0",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attends],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in reversed(attends)],
        "in_channels": shape.get("in_channels", 3),
        "out_channels": shape.get("in_channels", 3),
        "latent_channels": shape["latent_channels"],
        "layers_per_block": shape["num_res_blocks"],
        "norm_num_groups": groups,
        "sample_size": resolution or 256,
    }
    codes = {} if book is None else {"num_vq_embeddings": book["codes"], "vq_embed_dim": shape["latent_channels"]}
    return AutoencoderConfig(**config | codes | scaling)
