"""Sharded checkpoints: folders into which each rank writes what it holds, by torch.distributed.checkpoint.

    NAME.ckpt/rest.pt          all but the sharded tensors, as rank 0 has it, and where in it they belong
    NAME.ckpt/__R_0.distcp     rank R's parts of them, each a zip with its own CRC-32
    NAME.ckpt/.metadata        where each part lies: torch's own
    NAME.ckpt/metadata.sha256  of the latter

They are read by any number of ranks, or whole by one process, and without running what they hold.
"""

import io
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor import empty as empty_shards

from ldm.runtime.files import TEMPORARY, sha256
from ldm.weights import check_zip

REST, METADATA, DIGEST = "rest.pt", ".metadata", "metadata.sha256"
Place = tuple[str | int, ...]  # of a tensor: the keys that lead to it
# what .metadata names: torch's descriptions of tensors and files, and the types in them
NAMED = {
    "torch": {"Size", "float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "strided"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


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


def seal(folder: Path) -> None:
    """Write the digest, once all is there."""
    (folder / DIGEST).write_text(sha256(folder / METADATA))


# reading


def check_shards(folder: Path) -> None:
    """An error of whatever kind, if a file is missing, or damaged."""
    if missing := [name for name in (METADATA, DIGEST, REST) if not (folder / name).is_file()]:
        raise zipfile.BadZipFile(f"{missing[0]} is missing")
    if (folder / DIGEST).read_text() != sha256(folder / METADATA):
        raise zipfile.BadZipFile(f"{METADATA} fails its checksum")
    check_zip(folder / REST)
    for info in _Reader(folder).read_metadata().storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise zipfile.BadZipFile(f"{METADATA} leads out of its folder")
        if not (folder / info.relative_path).is_file():
            raise zipfile.BadZipFile(f"{info.relative_path} is missing")
        with (folder / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            check_zip(io.BytesIO(file.read(info.length)))


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
    rest, reader = _rest(folder), _Reader(folder)
    described = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for place in rest["places"]:
        of = described[_key(place)]
        assert isinstance(of, TensorStorageMetadata)
        tensors[_key(place)] = empty(of.size, of.properties.dtype)
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
    """torch's, whose .metadata, a pickle, can build nothing but descriptions of tensors."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (self.folder / METADATA).open("rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"{METADATA} does not describe tensors")
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in NAMED.get(module, ()):
            raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}")
        return super().find_class(module, name)
