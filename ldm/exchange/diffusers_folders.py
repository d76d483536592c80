"""Folders as diffusers has them: config.json, each kind a schema, and weights in one file or in several shards."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator
from safetensors.torch import save

from ldm.card import Scaling
from ldm.exchange.weight_files import State, read_tensors, tensors_in, unwrapped
from ldm.runtime.files import atomic_write
from ldm.runtime.hub import fetched
from ldm.runtime.ranges import Count
from ldm.runtime.schema import FileName, JsonFile
from ldm.runtime.wrong import shown

CONFIG, STEM = "config.json", "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
# a whole file of weights, or the index of several; groups: a variant such as fp16, the kind, whether it is an index
NAMES = re.compile(rf"{STEM}(\.(?!.*-of-)\w+)?\.(safetensors|bin)(\.index(\.\w+)?\.json)?")

WANTED = (CONFIG, WEIGHTS, f"{WEIGHTS}.index.json", f"{STEM}-*-of-*.safetensors")  # of a part of a hub's model

Width = Annotated[int, Field(ge=1, le=65_536)]
Widths = Annotated[list[Width], Field(min_length=1, max_length=16)]
Layers = Annotated[int, Field(ge=1, le=64)]
Heads = Count | list[Count]


class DiffusersConfig(JsonFile):
    """config.json, as far as it is used; other keys may be there.

    kinds:   of networks that it may describe, by `_class_name`
    whose:   architecture it is
    granted: what that takes for granted and a config may change
    """

    model_config = ConfigDict(extra="allow")
    checksummed: ClassVar[bool] = False
    fix: ClassVar[str] = "take the folder anew from where it was published"
    kinds: ClassVar[tuple[str, ...]]
    whose: ClassVar[str] = "LDM's"
    granted: ClassVar[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Likewise, and ValueError for a network of another architecture."""
        config = super().read(path)
        for key, wanted in cls.granted.items():
            if config.extra(key, wanted) != wanted:
                text = f"{config.extra(key)}"[:80]
                raise ValueError(f"{path} has {key}={text}; {cls.whose} architecture has {wanted}")
        return config

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and (kind := data.get("_class_name", cls.kinds[0])) not in cls.kinds:
            raise ValueError(f"it describes a {shown(kind)[:80]}, not a {' or '.join(cls.kinds)}")
        return data

    def extra(self, key: str, default: Any = None) -> Any:
        """A key that is not typed."""
        return (self.model_extra or {}).get(key, default)


class AutoencoderConfig(Scaling, DiffusersConfig):
    """Of an AutoencoderKL or a VQModel, whose weights tell all but its norms' groups and its scaling."""

    kinds: ClassVar[tuple[str, ...]] = ("AutoencoderKL", "VQModel")
    granted: ClassVar[dict[str, Any]] = {
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "norm_type": "group",
        "lookup_from_codebook": False,
    }

    block_out_channels: Widths | None = None
    layers_per_block: Layers | None = None
    latent_channels: Width = 4
    norm_num_groups: Count = 32
    num_vq_embeddings: Count | None = None
    vq_embed_dim: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_kind(cls, data: Any) -> Any:
        is_vq = isinstance(data, dict) and data.get("_class_name") == "VQModel"
        return {"latent_channels": 3} | data if is_vq else data

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(f"{name} has {len(values)} numbers, and latent_channels is {self.latent_channels}")
        _divided(self.block_out_channels or [], self.norm_num_groups)
        return self

    def scaling(self) -> dict[str, Any]:
        """What latents are scaled with, as far as it says."""
        return {name: getattr(self, name) for name in Scaling.model_fields if getattr(self, name)}


class UNetConfig(DiffusersConfig):
    """Of a UNet2DModel or a UNet2DConditionModel."""

    kinds: ClassVar[tuple[str, ...]] = ("UNet2DModel", "UNet2DConditionModel")
    granted: ClassVar[dict[str, Any]] = {
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

    block_out_channels: Widths
    layers_per_block: Layers
    down_block_types: Annotated[list[str], Field(min_length=1, max_length=16)]
    in_channels: Width
    out_channels: Width
    attention_head_dim: Heads | None = None
    num_attention_heads: Heads | None = None
    cross_attention_dim: Width | None = None
    resnet_time_scale_shift: str = "default"
    downsample_type: str | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "attention_head_dim", "num_attention_heads"):
            values = getattr(self, name)
            if isinstance(values, list) and len(values) != levels:
                raise ValueError(f"{name} has {len(values)} values, and block_out_channels {levels}")
        if self.heads is None:
            raise ValueError("attention_head_dim is null, not the size or the number of heads")
        if self.conditional and self.cross_attention_dim is None:
            raise ValueError("cross_attention_dim is missing, which a UNet2DConditionModel has")
        groups = self.extra("norm_num_groups", 32)
        _divided(self.block_out_channels, groups if type(groups) is int and groups > 0 else 32)
        return self

    @property
    def conditional(self) -> bool:
        return self.extra("_class_name") == "UNet2DConditionModel"

    @property
    def heads(self) -> Heads | None:
        return self.num_attention_heads or self.attention_head_dim


class WeightIndex(JsonFile):
    """NAME.safetensors.index.json: which file of several holds a tensor."""

    model_config = ConfigDict(extra="allow")
    checksummed: ClassVar[bool] = False
    fix: ClassVar[str] = "take the folder anew from where it was published"

    weight_map: Annotated[dict[str, FileName], Field(min_length=1)]


def _divided(widths: list[int], groups: int) -> None:
    if any(width % groups for width in widths):
        raise ValueError(f"block_out_channels is {widths}, of which a norm's {groups} groups are no divisor")


def read_weights(folder: Path) -> State:
    """The tensors of a folder: safetensors are read before .bin, both before a variant such as .fp16, and a whole file
    before one in shards."""
    matches = [match for path in folder.iterdir() if (match := NAMES.fullmatch(path.name))]
    if not matches:
        shards = sorted(path.name for path in folder.glob(f"{STEM}*-of-*"))
        more = f": {shards[0]} needs its index, {WEIGHTS}.index.json" if shards else ""
        raise ValueError(f"{folder} holds no {WEIGHTS}{more}")

    def rank(match: re.Match[str]) -> tuple[bool, bool, bool, str]:
        return match[2] != "safetensors", bool(match[1] or match[4]), bool(match[3]), match[0]

    first = min(matches, key=rank)
    return read_shards(folder / first[0]) if first[3] else read_tensors(folder / first[0])


def read_shards(index: Path) -> State:
    """The tensors of several files, each of which holds just those that the index says.

    Raises:
        ValueError: naming the file and the tensor, if one is missing, or one too many.
    """
    places = WeightIndex.read(index).weight_map
    state: State = {}
    for name in sorted(set(places.values())):
        tensors = tensors_in(index.parent / name)
        listed = {tensor for tensor, file in places.items() if file == name}
        for which, words in ((listed - tensors.keys(), "lacks"), (tensors.keys() - listed, "should not hold")):
            if which:
                raise ValueError(
                    f"{index.parent / name} {words} {min(which)}, as {index.name} has it: {WeightIndex.fix}"
                )
        state |= tensors
    return unwrapped(state)


def write_diffusers(folder: Path, config: JsonFile, state: State) -> None:
    """Write config.json and the weights as safetensors."""
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save({k: v.contiguous() for k, v in state.items()}, metadata={"format": "pt"}))
    config.write(folder / CONFIG)


def from_hub(source: str, *parts: str) -> Path:
    """The folder of a model's config and safetensors: see `ldm.runtime.hub.fetched`.

    parts: "vae", or "unet" and "transformer": the folders of it where the model is a whole pipeline
    """
    patterns = [f"{folder}{name}" for folder in ("", *(f"{part}/" for part in parts)) for name in WANTED]
    return fetched(source, patterns, key="source", extra="hub", files=f"its {CONFIG} and {WEIGHTS}")
