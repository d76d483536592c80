"""U-Nets: checkpoints of CompVis and ADM (averaged weights where both are there), diffusers' U-Nets, and back."""

import logging
import re
from pathlib import Path
from typing import Any, Literal

import torch

from ldm.exchange.diffusers_folders import CONFIG, UNetConfig, read_weights, write_diffusers
from ldm.exchange.unet_names import from_diffusers, heads_first, heads_of, to_diffusers
from ldm.exchange.unet_shapes import KIND, diffusers_config, further_keys, infer_shape, shape_of_diffusers
from ldm.exchange.weight_files import State, dims, fill, fit, read_tensors, scale_factor
from ldm.models.unet import UNet

log = logging.getLogger(__name__)

UNET_PREFIX, LABELS = "model.diffusion_model.", "cond_stage_model.embedding.weight"
AttentionOrder = Literal["legacy", "new"]


def import_unet(
    path: Path,
    heads: dict[str, int],
    null_class: bool,
    attention_order: AttentionOrder | None = None,
    tensors: State | None = None,
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
        tensors:         a file's, if it was read already.

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
        shape = shape_of_diffusers(UNetConfig.read(folder / CONFIG), folder / CONFIG)
        state = from_diffusers(read_weights(folder), shape, folder)
    else:
        tensors = read_tensors(path) if tensors is None else tensors
        factor = scale_factor(tensors, path)
        state, shape = _read_file(tensors, path, heads)
    if not (has_labels := "label_emb.weight" in state):  # a model without classes: no label moves anything
        state["label_emb.weight"] = torch.zeros(2, 4 * shape["model_channels"])
    rows, _ = dims(state, "label_emb.weight", 2, path, KIND)
    if not null_class and has_labels:
        labels, rows = state["label_emb.weight"], rows + 1
        state["label_emb.weight"] = torch.cat([labels, torch.zeros_like(labels[:1])])
    if rows < 2:
        raise ValueError(f"{path}: label_emb.weight has one row alone, so it is no null class: pass null_class=false")
    shape |= {"num_classes": rows - 1, "time_offset": 1.0}
    if not path.is_dir():
        fit(lambda: UNet(**shape), state, path, shape)
        state = _with_heads_first(state, shape, path, attention_order)
    model = fill(lambda: UNet(**shape), state, path, shape)
    assert isinstance(model, UNet)
    return model, shape, factor


def _read_file(tensors: State, path: Path, heads: dict[str, int]) -> tuple[State, dict[str, Any]]:
    """The U-Net's state and its constructor's arguments, of a CompVis or ADM file's tensors."""
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
    return state, infer_shape(state, path, heads)


def _with_heads_first(state: State, shape: dict[str, Any], path: Path, attention_order: AttentionOrder | None) -> State:
    """The state of a CompVis or ADM file, which fits its network, with heads first in qkv."""
    if not _has_several_heads(state, shape):
        return state
    if attention_order not in ("legacy", "new"):
        raise ValueError(
            f"{path} does not tell how its attention heads lie in qkv: pass attention_order=new if its yaml or flags "
            "have use_new_attention_order=True, else attention_order=legacy"
        )
    return heads_first(state, shape) if attention_order == "new" else state


def _without_variance(state: State, path: Path) -> State:
    """The state with the mean half of an output that is twice the input (ADM's learn_sigma)."""
    if not {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"} <= state.keys():
        return state  # no U-Net, as `infer_shape` will say
    _, inputs, *_ = dims(state, "input_blocks.0.0.weight", 4, path, KIND)
    outputs, *_ = dims(state, "out.2.weight", 4, path, KIND)
    if outputs != 2 * inputs or dims(state, "out.2.bias", 1, path, KIND) != (outputs,):
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
    config = check_export(shape, latent_size)
    write_diffusers(folder, UNetConfig(**config), to_diffusers(model.state_dict(), shape))


def check_export(shape: dict[str, Any], latent_size: int) -> dict[str, Any]:
    """config.json of a U-Net alone; ValueError naming the option, where diffusers has none."""
    config, beyond = diffusers_config(shape, latent_size)
    further = further_keys(shape)
    if beyond or further or shape.get("label_as") == "context":
        what = ", ".join([*beyond, *further]) or "label_as=context"
        raise ValueError(
            f"diffusers' classes alone have no place for this U-Net's {what}: export the whole model, by model=RUN"
        )
    return config
