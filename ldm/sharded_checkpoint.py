"""Sharded checkpoints: folders into which each rank writes what it holds, by torch.distributed.checkpoint.

    NAME.ckpt/rest.pt        all but the sharded tensors, as rank 0 has it, and where in it they belong
    NAME.ckpt/__R_0.distcp   rank R's parts of them, each a zip with its own CRC-32
    NAME.ckpt/shards.json    of each tensor its type, its size and where its parts lie, with a checksum

They are read by any number of ranks, or whole by one process. In place of torch's own description, which is a pickle,
shards.json is kept: reading runs nothing that a file holds.
"""

import io
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor import empty as empty_shards

from ldm.runtime.files import TEMPORARY
from ldm.runtime.ranges import Count, Natural
from ldm.runtime.schema import JsonFile, Part
from ldm.weights import check_zip

REST, SHARDS, TORCHS = "rest.pt", "shards.json", ".metadata"
Place = tuple[str | int, ...]  # of a tensor: the keys that lead to it


class Rows(Part):
    """A tensor's rows from one on, and the bytes of a file that hold them."""

    first: Natural
    count: Natural
    file: str
    offset: Natural
    bytes: Count


class Stored(Part):
    """A tensor, and its parts in order."""

    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    size: list[Natural]
    parts: list[Rows]


class Shards(JsonFile):
    """shards.json: the tensors by their keys."""

    fix: ClassVar[str] = "take an older checkpoint"

    tensors: dict[str, Stored]


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a path is a folder as above, and no run folder."""
    return path.is_dir() and path.suffix == ".ckpt"


def remove(file: Path) -> None:
    """Remove a checkpoint: of a sharded one first its name, so that no half of it is taken for one."""
    if not file.is_dir():
        file.unlink()
        return
    aside = file.with_name(f".{file.name}.removed{TEMPORARY}")
    file.rename(aside)
    shutil.rmtree(aside)


# writing


def split(tree: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What rest.pt holds of a tree of dictionaries and lists, and its sharded tensors by their keys."""
    places: list[Place] = []
    tensors: dict[str, Tensor] = {}
    rest = _without_shards(tree, (), places, tensors)
    return {"tree": rest, "places": places}, tensors


def _without_shards(node: Any, place: Place, places: list[Place], tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, DTensor):
        places.append(place)
        tensors[_key(place)] = node
        return None
    if isinstance(node, dict):
        return {name: _without_shards(value, (*place, name), places, tensors) for name, value in node.items()}
    if isinstance(node, list):
        return [_without_shards(value, (*place, i), places, tensors) for i, value in enumerate(node)]
    return node


def _key(place: Place) -> str:
    return "/".join(map(str, place))


def seal(folder: Path, metadata: Metadata) -> None:
    """Describe what all ranks have written, by what torch says of it, and flush the folder."""
    assert metadata.storage_data is not None
    tensors = {}
    for key, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        parts = []
        for chunk in stored.chunks:
            at = metadata.storage_data[MetadataIndex(key, chunk.offsets)]
            first, count = chunk.offsets[0], chunk.sizes[0]
            where = {"file": at.relative_path, "offset": at.offset, "bytes": at.length}
            parts.append(Rows(first=first, count=count, **where))
        parts.sort(key=lambda part: (part.first, part.count))
        dtype: Any = str(stored.properties.dtype).removeprefix("torch.")
        tensors[key] = Stored(dtype=dtype, size=list(stored.size), parts=parts)
    Shards(tensors=tensors).write(folder / SHARDS)
    (folder / TORCHS).unlink()
    flush(folder)


def flush(folder: Path) -> None:
    """Have the disk know a folder's names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# reading


def check_shards(folder: Path) -> None:
    """An error of whatever kind, if a file or a part of a tensor is missing, or damaged."""
    for name in (SHARDS, REST):
        if not (folder / name).is_file():
            raise zipfile.BadZipFile(f"{name} is missing")
    check_zip(folder / REST)
    for key, stored in Shards.read(folder / SHARDS).tensors.items():
        row = 0
        for part in stored.parts:
            if part.first != row or Path(part.file).name != part.file:
                raise zipfile.BadZipFile(f"{SHARDS} does not say where all of {key} lies")
            row += part.count
            if not (folder / part.file).is_file():
                raise zipfile.BadZipFile(f"{part.file} is missing")
            with (folder / part.file).open("rb") as file:
                file.seek(part.offset)
                check_zip(io.BytesIO(file.read(part.bytes)))
        if not stored.size or row != stored.size[0]:
            raise zipfile.BadZipFile(f"{SHARDS} does not say where all of {key} lies")


def read_rest(folder: Path) -> dict[str, Any]:
    """The tree with None in the place of each sharded tensor."""
    return _rest(folder)["tree"]


def read_whole(folder: Path) -> dict[str, Any]:
    """The tree with tensors as one process would have saved them."""
    return _read(folder, lambda size, dtype: torch.empty(size, dtype=dtype))


def read_shards(folder: Path, mesh: DeviceMesh) -> dict[str, Any]:
    """The tree with tensors of which each rank reads its own part, however many ranks have written them.

    mesh: as `ldm.training.sharding.shard` has it
    """
    placements: list[Placement] = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]

    def empty(size: torch.Size, dtype: torch.dtype) -> Tensor:
        return empty_shards(*size, dtype=dtype, device_mesh=mesh, placements=placements)

    return _read(folder, empty)


def _rest(folder: Path) -> dict[str, Any]:
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def _read(folder: Path, empty: Callable[[torch.Size, torch.dtype], Tensor]) -> dict[str, Any]:
    rest, described = _rest(folder), Shards.read(folder / SHARDS).tensors
    reader = _Reader(folder, described)
    tensors: dict[str, Tensor] = {}
    for place in rest["places"]:
        of = described[_key(place)]
        tensors[_key(place)] = empty(torch.Size(of.size), getattr(torch, of.dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is asked for
        try:
            dcp.load(tensors, storage_reader=reader, no_dist=True)  # each rank by itself
        except CheckpointException as failed:  # which is no Exception
            raise next(iter(failed.failures.values()))[0] from None
    for place in rest["places"]:
        *outer, last = place
        node = rest["tree"]
        for name in outer:
            node = node[name]
        node[last] = tensors[_key(place)]
    return rest["tree"]


class _Reader(dcp.FileSystemReader):
    """torch's, which is told what it would have read in its own description."""

    def __init__(self, folder: Path, described: dict[str, Stored]) -> None:
        super().__init__(folder)
        self.described = described

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        tensors: dict[str, Any] = {}
        places = {}
        for key, stored in self.described.items():
            chunks = []
            for part in stored.parts:
                offsets = torch.Size([part.first, *(0 for _ in stored.size[1:])])
                chunks.append(ChunkStorageMetadata(offsets, torch.Size([part.count, *stored.size[1:]])))
                places[MetadataIndex(key, offsets)] = _StorageInfo(part.file, part.offset, part.bytes)
            properties = TensorProperties(dtype=getattr(torch, stored.dtype))
            tensors[key] = TensorStorageMetadata(properties, torch.Size(stored.size), chunks)
        return Metadata(state_dict_metadata=tensors, storage_data=places)
