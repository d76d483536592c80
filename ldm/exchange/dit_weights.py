"""DiTs: checkpoints in the layout of facebookresearch/DiT, diffusers' DiTTransformer2DModel, and back."""

import io
import logging
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from ldm.exchange.diffusers_folders import (
    CONFIG,
    DiffusersConfig,
    Layers,
    Width,
    read_weights,
    write_diffusers,
)
from ldm.exchange.weight_files import State, dims, fill
from ldm.models.dit import DiT
from ldm.models.dit_layers import coordinates, sinusoidal_positions
from ldm.runtime.files import atomic_write
from ldm.runtime.ranges import Count, Positive

log = logging.getLogger(__name__)

KIND, FILE = "DiT", "dit.pt"
TABLE, STEM, POSITIONS = "y_embedder.embedding_table.weight", "x_embedder.proj.weight", "pos_embed"
# names outside the blocks, ours (which are the authors') and diffusers'
END_NAMES = (
    ("x_embedder.proj.", "pos_embed.proj."),
    ("final_layer.adaLN_modulation.1.", "proj_out_1."),
    ("final_layer.linear.", "proj_out_2."),
)
# likewise within a block
BLOCK_NAMES = (
    ("adaLN_modulation.1.", "norm1.linear."),
    ("attn.proj.", "attn1.to_out.0."),
    ("mlp.fc1.", "ff.net.0.proj."),
    ("mlp.fc2.", "ff.net.2."),
)
# of what diffusers repeats in every block
EMBEDDER_NAMES = (
    ("t_embedder.mlp.0.", "norm1.emb.timestep_embedder.linear_1."),
    ("t_embedder.mlp.2.", "norm1.emb.timestep_embedder.linear_2."),
    ("y_embedder.", "norm1.emb.class_embedder."),
)
ORDINARY: dict[str, Any] = {  # the options of the published architecture
    "positions": "sincos", "norm": "layer", "mlp": "gelu", "qk_norm": False, "context_dim": None, "concat_channels": 0,
    "codes": 0,
}  # fmt: skip


class DiTConfig(DiffusersConfig):
    """Of a DiTTransformer2DModel."""

    kinds: ClassVar[tuple[str, ...]] = ("DiTTransformer2DModel", "Transformer2DModel")
    whose: ClassVar[str] = "DiT's"
    granted: ClassVar[dict[str, Any]] = {
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "attention_bias": True,
        "cross_attention_dim": None,
    }

    num_attention_heads: Count = 16
    attention_head_dim: Count = 72
    in_channels: Width = 4
    out_channels: Width | None = None
    num_layers: Layers = 28
    sample_size: Width = 32
    patch_size: Width = 2
    num_embeds_ada_norm: Count = Field(default=1000)
    norm_eps: Positive = 1e-5


def holds_dit(tensors: State) -> bool:
    """Whether a file's tensors are a DiT's."""
    return STEM in tensors and TABLE in tensors


def dit_folder(path: Path) -> Path | None:
    """Where a diffusers folder, of a pipeline or of a network alone, has a DiT's config; None if it has none."""
    for folder in (path / "transformer", path):
        file = folder / CONFIG
        if file.is_file() and '"DiTTransformer2DModel"' in file.read_text(errors="replace"):
            return folder
    return None


def import_dit(path: Path, tensors: State | None, heads: dict[str, int]) -> tuple[DiT, dict[str, Any]]:
    """Read a DiT from a .pt or .safetensors file in its authors' layout, or from a diffusers folder.

    The variance that published networks predict beside their target (learn_sigma) is left out.

    Args:
        path:    the file or the folder of config.json
        tensors: of a file; None for a folder
        heads:   what a file does not tell: {"head_channels": n} or {"num_heads": n}; {} for a folder

    Returns:
        the network, and its constructor's arguments. Its label table's last row is the null class.

    Raises:
        ValueError: if it is damaged, or no DiT of the published architecture.
    """
    if tensors is None:
        if heads:
            raise ValueError(f"{path / CONFIG} tells the heads: leave num_heads and head_channels null")
        config = DiTConfig.read(path / CONFIG)
        state, shape = _from_diffusers(read_weights(path), config, path), _shape_of_diffusers(config)
    else:
        state, shape = dict(tensors), _shape_of_file(tensors, path, heads)
        _check_positions(state.pop(POSITIONS, None), shape, path)
    rows, _ = dims(state, TABLE, 2, path, KIND)
    if rows < 2:
        raise ValueError(f"{path}: {TABLE} has one row alone, so it is no null class: take a model that has one")
    shape |= {"num_classes": rows - 1, "time_offset": 1.0}
    model = fill(lambda: DiT(**shape), _without_variance(state, shape, path), path, shape)
    assert isinstance(model, DiT)
    return model, shape


def _shape_of_file(state: State, path: Path, heads: dict[str, int]) -> dict[str, Any]:
    if len(heads) != 1 or "num_heads_upsample" in heads:
        raise ValueError(f"{path} does not tell its attention heads: pass num_heads= (DiT-XL and L have 16, B 12, S 6)")
    channels, inputs, patch, _ = dims(state, STEM, 4, path, KIND)
    hidden, _ = dims(state, "blocks.0.mlp.fc1.weight", 2, path, KIND)
    _, places, _ = dims(state, POSITIONS, 3, path, KIND)
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "in_channels": inputs,
        "latent_size": [math.isqrt(places) * patch] * 2,
        "patch": patch,
        "model_channels": channels,
        "depth": len(blocks),
        "head_channels": heads.get("head_channels") or channels // heads["num_heads"],
        "mlp_ratio": hidden / channels,
        "time_periods": "dit",
    }


def _shape_of_diffusers(config: DiTConfig) -> dict[str, Any]:
    return {
        "in_channels": config.in_channels,
        "latent_size": [config.sample_size] * 2,
        "patch": config.patch_size,
        "model_channels": config.num_attention_heads * config.attention_head_dim,
        "depth": config.num_layers,
        "head_channels": config.attention_head_dim,
        "norm_eps": config.norm_eps,
    }


def _positions(patches: tuple[int, int], channels: int) -> torch.Tensor:
    """The authors' pos_embed, [1, N, C]."""
    return sinusoidal_positions(coordinates(*patches, patches, torch.device("cpu")), channels)[None]


def _check_positions(positions: torch.Tensor | None, shape: dict[str, Any], path: Path) -> None:
    """ValueError where positions were learned, or are others than DiT's."""
    side = shape["latent_size"][0] // shape["patch"]
    ours = _positions((side, side), shape["model_channels"])
    if positions is None or positions.shape != ours.shape or not torch.allclose(positions.float(), ours, atol=1e-3):
        raise ValueError(f"{path}: {POSITIONS} does not hold the sinusoids of {side} x {side} patches")


def _without_variance(state: State, shape: dict[str, Any], path: Path) -> State:
    """The state with the mean half of an output that is twice the input."""
    last, channels, patch = "final_layer.linear.", shape["in_channels"], shape["patch"]
    rows, _ = dims(state, f"{last}weight", 2, path, KIND)
    if rows != patch * patch * 2 * channels or state.get(f"{last}bias", torch.empty(0)).shape != (rows,):
        return state
    log.info("%s predicts a mean and a variance (learn_sigma): only the mean is taken", path)
    for name in (f"{last}weight", f"{last}bias"):
        state[name] = state[name].unflatten(0, (patch * patch, 2 * channels))[:, :channels].flatten(0, 1)
    return state


def _from_diffusers(state: State, config: DiTConfig, path: Path) -> State:
    """The tensors under the authors' names; ValueError where blocks differ in what diffusers repeats in each."""
    renamed: State = {}
    rest = dict(state)
    rest.pop("pos_embed.pos_embed", None)
    for ours, theirs in END_NAMES:
        renamed |= {ours + k.removeprefix(theirs): rest.pop(k) for k in list(rest) if k.startswith(theirs)}
    for i in range(config.num_layers):
        prefix = f"transformer_blocks.{i}."
        block = {k.removeprefix(prefix): rest.pop(k) for k in list(rest) if k.startswith(prefix)}
        for ours, theirs in EMBEDDER_NAMES:
            for name in [name for name in block if name.startswith(theirs)]:
                tensor = block.pop(name)
                known = renamed.setdefault(ours + name.removeprefix(theirs), tensor)
                if not torch.equal(known, tensor):
                    raise ValueError(f"{path}: {prefix}{name} is not that of the first block, as in every DiT")
        for kind in ("weight", "bias"):
            parts = [block.pop(f"attn1.to_{letter}.{kind}", None) for letter in "qkv"]
            if any(part is None for part in parts):
                raise ValueError(f"{path} lacks {prefix}attn1.to_q.{kind}, or those of k and v: it holds no {KIND}")
            renamed[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([part for part in parts if part is not None])
        for name, tensor in block.items():
            new = next((a + name.removeprefix(b) for a, b in BLOCK_NAMES if name.startswith(b)), name)
            renamed[f"blocks.{i}.{new}"] = tensor
    return renamed | rest


def check_published(shape: dict[str, Any], time_periods: str, where: str) -> None:
    """ValueError naming the option, where a DiT is not of the published architecture."""
    for key, ordinary in ORDINARY.items():
        if shape.get(key, ordinary) != ordinary:
            raise ValueError(f"{where} has no place for net.{key}={shape[key]}")
    if (found := shape.get("time_periods", "diffusers")) != time_periods:
        raise ValueError(f"{where} embeds times as net.time_periods={time_periods} does, and not as {found}")


def diffusers_config(shape: dict[str, Any]) -> dict[str, Any]:
    """config.json of a DiTTransformer2DModel; ValueError naming the key, for what diffusers has not."""
    check_published(shape, "diffusers", "diffusers' DiT")
    height, width = shape["latent_size"]
    if height != width:
        raise ValueError(f"diffusers' DiT is of squares: net.latent_size={shape['latent_size']} is none")
    if shape.get("mlp_ratio", 4.0) != 4.0:
        raise ValueError(f"diffusers' DiT has net.mlp_ratio=4, and not {shape['mlp_ratio']}")
    return {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": "0.32.0",
        "num_attention_heads": shape["model_channels"] // shape["head_channels"],
        "attention_head_dim": shape["head_channels"],
        "in_channels": shape["in_channels"],
        "out_channels": shape["in_channels"],
        "num_layers": shape["depth"],
        "sample_size": height,
        "patch_size": shape["patch"],
        "num_embeds_ada_norm": shape["num_classes"],
        "norm_eps": shape.get("norm_eps", 1e-6),
    }


def to_diffusers(state: State, shape: dict[str, Any]) -> State:
    """The same tensors under diffusers' names."""
    renamed: State = {}
    for ours, theirs in END_NAMES:
        renamed |= {theirs + k.removeprefix(ours): v for k, v in state.items() if k.startswith(ours)}
    for i in range(shape["depth"]):
        new = f"transformer_blocks.{i}."
        for ours, theirs in EMBEDDER_NAMES:
            renamed |= {new + theirs + k.removeprefix(ours): v.clone() for k, v in state.items() if k.startswith(ours)}
        for kind in ("weight", "bias"):
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            renamed |= {f"{new}attn1.to_{letter}.{kind}": part for letter, part in zip("qkv", parts, strict=True)}
            renamed |= {f"{new}{theirs}{kind}": state[f"blocks.{i}.{ours}{kind}"] for ours, theirs in BLOCK_NAMES}
    return renamed


def check_export(shape: dict[str, Any], to: str) -> None:
    """ValueError naming the option, where diffusers or the authors' code has no such network."""
    further = [key for key in ("second_time", "takes_guidance") if shape.get(key)]
    if further:
        raise ValueError(f"a DiT alone has no place for {', '.join(further)}: export the whole model, by model=RUN")
    if to == "diffusers":
        diffusers_config(shape)
    else:
        check_published(shape, "dit", "the authors' DiT")


def export_dit(model: DiT, shape: dict[str, Any], folder: Path, to: str) -> None:
    """Write config.json and safetensors of diffusers' DiTTransformer2DModel, or dit.pt in the authors' layout, which
    their code reads with learn_sigma=False.

    Raises:
        ValueError: naming the option, where there is no such network there.
    """
    check_export(shape, to)
    state = model.state_dict()
    if to == "diffusers":
        write_diffusers(folder, DiTConfig(**diffusers_config(shape)), to_diffusers(state, shape))
        return
    buffer = io.BytesIO()
    torch.save({POSITIONS: _positions(model.trained, model.model_channels), **state}, buffer)
    with atomic_write(folder / FILE) as file:
        file.write(buffer.getvalue())
