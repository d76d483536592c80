"""Weights as files hold them: whole, of the shapes and types of the model that they are for, and finite."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

FOLDER_BIT = 0x10  # of an entry's attributes, at which torch's reader leaves a tensor's memory as it is, unread


def check_zip(file: Path | IO[bytes]) -> None:
    """zipfile.BadZipFile if an entry of a zip file fails its CRC-32, or is what torch never writes: compressed, a
    folder, there twice."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("it is compressed")
        if any(entry.external_attr & FOLDER_BIT for entry in entries):
            raise zipfile.BadZipFile("one of its tensors is marked as a folder")
        if len({entry.filename for entry in entries}) < len(entries):
            raise zipfile.BadZipFile("one of its entries is there twice")
        damaged_entry = archive.testzip()
    if damaged_entry is not None:
        raise zipfile.BadZipFile(f"{damaged_entry} fails its checksum")


def weights_fingerprint(model: nn.Module) -> str:
    """`state_fingerprint` of a model's state."""
    return state_fingerprint(model.state_dict())


def state_fingerprint(state: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over the names, shapes, types and bytes of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def part_of(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if str(name).startswith(prefix)}


class Undrawn(TorchFunctionMode):
    """Within it, torch.nn.init draws nothing: of models whose weights are about to be loaded, or are only counted.

    That is most of the time that a large network takes to be built; on the meta device it also imports a compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def without_values(build: Callable[[], Any]) -> Any:
    """What `build` makes on the meta device: names, shapes and types of its weights, which take no memory."""
    with torch.device("meta"), Undrawn():
        return build()


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are; of whole numbers they are. Twice as fast as asking each."""
    return not tensor.is_floating_point() or tensor.numel() == 0 or all(v.isfinite() for v in tensor.aminmax())


def check_weights(build: Callable[[], Any], state: dict[str, Any], file: Path) -> None:
    """Hold weights to the model that they are for, before it takes any memory.

    Args:
        build: makes the model; here on the meta device, where it has no values
        state: its weights, by name
        file: that they come from, for errors

    Raises:
        ValueError: if a weight is missing, is too many, has another shape or type, or is not finite.
    """
    model = without_values(build)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{file}: its card names a {type(model).__name__} where a network belongs")
    wanted = model.state_dict()
    unfit = f"{file} does not fit the model that its own card describes"
    for names, are in ((wanted.keys() - state.keys(), "are missing"), (state.keys() - wanted.keys(), "are too many")):
        if names:
            raise ValueError(f"{unfit}: {len(names)} weights {are}, such as {min(names)}")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.shape != wanted[name].shape:
            shape = list(getattr(tensor, "shape", []))
            raise ValueError(f"{unfit}: {name} has the shape {shape}, not {list(wanted[name].shape)}")
        if tensor.layout is not torch.strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
            raise ValueError(f"{file} does not hold all of its values: {name} is sparse, or one number for many")
        whole = wanted[name].dtype == tensor.dtype
        if not whole and not {wanted[name].dtype, tensor.dtype} <= {torch.float32, torch.float64}:
            raise ValueError(f"{file}: {name} is of {tensor.dtype}, not {wanted[name].dtype}")
        if not is_finite(tensor):
            raise ValueError(f"{file}: {name} is not finite: training went wrong; take an older checkpoint")
