"""U-Nets: checkpoints of CompVis and ADM (averaged weights where both are there), diffusers' U-Nets, and back."""

import logging
import re
from pathlib import Path
from typing import Any, Literal

import torch

from ldm.exchange.unet_names import from_diffusers, heads_first, heads_of, to_diffusers
from ldm.exchange.unet_shapes import diffusers_config, infer_shape, shape_of_diffusers
from ldm.exchange.weight_files import CONFIG, State, fill, read_diffusers_weights, read_tensors, write_diffusers
from ldm.models.unet import UNet
from ldm.runtime.files import read_json

log = logging.getLogger(__name__)

UNET_PREFIX, LABELS = "model.diffusion_model.", "cond_stage_model.embedding.weight"
AttentionOrder = Literal["legacy", "new"]


def import_unet(
    path: Path, heads: dict[str, int], null_class: bool, attention_order: AttentionOrder | None = None
) -> tuple[UNet, dict[str, Any], float | None]:
    """Read a .ckpt, .pt or .safetensors of a whole model or of a U-Net alone, or a diffusers folder of a U-Net.

    The variance that ADM's networks predict beside their target (learn_sigma) is left out.

    Args:
        path:            the file or folder.
        heads:           what a file's weights do not tell: {"head_channels": n} or {"num_heads": n}, with the latter
                         perhaps {"num_heads_upsample": n}; {} for a folder, whose config.json tells.
        null_class:      whether the last row of the label table is the class "dropped", as in LDM's cin256; else a row
                         of zeros is added for it.
        attention_order: of a file's plain attention with several heads: whether qkv's channels are heads first
                         ("legacy") or q, k, v first ("new": use_new_attention_order). None = neither is known.

    Returns:
        the network, its constructor's arguments, and the model's scale_factor (None = it has none).

    Raises:
        ValueError: if the file is damaged, holds code, or holds no U-Net of LDM's or ADM's architecture; if heads or
            attention_order are needed and not given.
    """
    factor = None
    if path.is_dir():
        folder = path / "unet" if (path / "unet" / CONFIG).exists() else path
        if heads or attention_order:
            raise ValueError(
                f"{folder / CONFIG} tells the heads: leave num_heads, head_channels and attention_order null"
            )
        shape = shape_of_diffusers(read_json(folder / CONFIG), folder / CONFIG)
        state = from_diffusers(read_diffusers_weights(folder), shape)
    else:
        tensors = read_tensors(path)
        factor = float(tensors["scale_factor"]) if "scale_factor" in tensors else None
        state, shape = _read_file(tensors, path, heads, attention_order)
    if "label_emb.weight" not in state:  # a model without classes: no label moves anything
        state["label_emb.weight"] = torch.zeros(2, 4 * shape["model_channels"])
    elif not null_class:
        labels = state["label_emb.weight"]
        state["label_emb.weight"] = torch.cat([labels, torch.zeros_like(labels[:1])])
    shape |= {"num_classes": len(state["label_emb.weight"]) - 1, "time_offset": 1.0}
    model = UNet(**shape)
    fill(model, state, path, shape)
    return model, shape, factor


def _read_file(
    tensors: State, path: Path, heads: dict[str, int], attention_order: AttentionOrder | None
) -> tuple[State, dict[str, Any]]:
    """The U-Net's state with heads first, and its constructor's arguments, of a CompVis or ADM file's tensors."""
    if len(heads.keys() - {"num_heads_upsample"}) != 1:
        raise ValueError(
            f"{path} does not tell its attention heads: pass num_heads= or head_channels=, as its yaml or flags have "
            "(num_head_channels), and num_heads_upsample= if they have it"
        )
    state = {k.removeprefix(UNET_PREFIX): v for k, v in tensors.items() if k.startswith(UNET_PREFIX)}
    if state:
        state = {k: tensors.get("model_ema.diffusion_model" + k.replace(".", ""), v) for k, v in state.items()}
        state |= {"label_emb.weight": tensors[LABELS]} if LABELS in tensors else {}
    else:  # ADM's files hold the network alone
        state = dict(tensors)
    state = _without_variance(state, path)
    shape = infer_shape(state, path, heads)
    if not _has_several_heads(state, shape):
        return state, shape
    if attention_order not in ("legacy", "new"):
        raise ValueError(
            f"{path} does not tell how its attention heads lie in qkv: pass attention_order=new if its yaml or flags "
            "have use_new_attention_order=True, else attention_order=legacy"
        )
    return (heads_first(state, shape) if attention_order == "new" else state), shape


def _without_variance(state: State, path: Path) -> State:
    """The state with the mean half of an output that is twice the input (ADM's learn_sigma)."""
    if not {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"} <= state.keys():
        return state  # no U-Net, as `infer_shape` will say
    inputs, outputs = state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]
    if outputs != 2 * inputs:
        return state
    log.info("%s predicts a mean and a variance (learn_sigma): only the mean is taken", path)
    return state | {name: state[name][:inputs] for name in ("out.2.weight", "out.2.bias")}


def _has_several_heads(state: State, shape: dict[str, Any]) -> bool:
    """Whether any plain attention has more heads than one: with one, both orders are the same."""
    return any(
        heads_of(shape, len(tensor) // 3, name.startswith("output_blocks.")) > 1
        for name, tensor in state.items()
        if re.search(r"\.qkv\.weight$", name)
    )


def export_unet(model: UNet, shape: dict[str, Any], folder: Path, latent_size: int) -> None:
    """Write config.json and safetensors that diffusers' UNet2DModel or UNet2DConditionModel reads.

    Raises:
        ValueError: if diffusers has no such network; names the option in `shape`, the constructor's arguments.
    """
    write_diffusers(folder, diffusers_config(shape, latent_size), to_diffusers(model.state_dict(), shape))
