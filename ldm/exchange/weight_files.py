"""Files of weights from elsewhere, read without executing anything in them, and held to the network that they fill."""

import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.runtime.wrong import first_line
from ldm.weights import Undrawn, check_zip, is_finite, without_values

State = dict[str, Tensor]
WRAPPERS = ("_orig_mod", "module")  # what torch.compile and DDP put before the names of what they wrap
EMA = "model_ema."  # CompVis' averaged weights, whose names are those of the others without dots
INSIDE = ("state_dict", "ema")  # what weights lie under in a training's checkpoint: Lightning's, DiT's averaged ones
ZIP = b"PK\x03\x04"


class _Inert:
    """Takes the place of a class or function that an old checkpoint names beside its weights; does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# what checkpoints of Lightning 1.x hold beside tensors: a callback's class, and a NumPy scalar, its best score; none of
# them is made, since bytes of a type that a file describes can be pointers
HARMLESS: list[Any] = [
    (_Inert, name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "argparse.Namespace",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
    )
]


def read_tensors(path: Path) -> State:
    """The tensors of a file by name, as `tensors_in` has them, but for what torch.compile and DDP put before them."""
    return unwrapped(tensors_in(path))


def tensors_in(path: Path) -> State:
    """The tensors of a .ckpt, .pt, .bin or .safetensors file by name, of its "state_dict" or "ema" where it has one.

    Raises:
        ValueError: that names the file, if it does not exist, is damaged, or refers to anything but tensors.
    """
    if not path.is_file():
        problem = "is no regular file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}: name a .ckpt, .safetensors or a diffusers folder")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = _unpickled(path)
    except UnpicklingError as error:
        global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"refers to {global_name[1]}, which is no tensor" if global_name else "is no checkpoint"
        raise ValueError(f"{path} {what}: nothing of it was executed. Ask for a .safetensors file") from None
    except Exception as error:  # the libraries raise whatever a damaged file leads them to
        raise ValueError(f"{path} is damaged or no checkpoint: {first_line(error)}") from None
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is no plain tensor: save its values as dense float32")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{path}: {name} is {list(tensor.shape)}, of which the file holds only a part")
    return tensors


def _unpickled(path: Path) -> dict[Any, Any]:
    """What a zip of torch's holds, once its checksums are compared, or an old pickle, which has none."""
    with path.open("rb") as file:
        starts_as_zip = file.read(len(ZIP)) == ZIP
    if starts_as_zip or zipfile.is_zipfile(path):
        check_zip(path)
    with torch.serialization.safe_globals(HARMLESS):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = checkpoint if isinstance(checkpoint, dict) else {}
    state = next((state[key] for key in INSIDE if isinstance(state.get(key), dict)), state)
    return state if isinstance(state, dict) else {}


def unwrapped(tensors: State) -> State:
    """The tensors under the names that they had before torch.compile or DDP wrapped their network, or a part of it.

    A part named as those name it is left out of the names where all tensors of a prefix have it: then it wraps them.
    """
    names = {name: tuple(name.split(".")) for name in tensors}
    after = defaultdict[tuple[str, ...], set[str]](set)
    for parts in names.values():
        for i, part in enumerate(parts):
            after[parts[:i]].add(part)

    def wraps(parts: tuple[str, ...], i: int) -> bool:
        return parts[i] in WRAPPERS and i < len(parts) - 1 and len(after[parts[:i]]) == 1

    renamed = {}
    for name, parts in names.items():
        plain = ".".join(part for i, part in enumerate(parts) if not wraps(parts, i))
        renamed[plain.replace("_orig_mod", "") if plain.startswith(EMA) else plain] = tensors[name]
    return renamed


def scale_factor(tensors: State, path: Path) -> float | None:
    """The factor that a whole model scales its latents with, if it has one; ValueError if nothing can be scaled so."""
    if "scale_factor" not in tensors:
        return None
    factor = tensors["scale_factor"]
    value = float(factor) if factor.numel() == 1 and not factor.is_complex() else float("nan")
    if not 0 < value < float("inf"):
        told = f"{value:g}" if factor.numel() == 1 else f"a tensor of {list(factor.shape)}"
        raise ValueError(f"{path}: scale_factor is {told}, not a finite number of more than 0: take another file")
    return value


def dims(state: State, name: str, rank: int, path: Path, kind: str) -> tuple[int, ...]:
    """The shape of a tensor that a kind of network must have; ValueError, naming it, if it is missing or of another
    rank."""
    if name not in state:
        raise ValueError(f"{path} lacks {name}: it holds no {kind}")
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{path}: {name} is {list(shape)}, not of {rank} dimensions: it holds no {kind}")
    return shape


def fit(build: Callable[[], nn.Module], state: State, path: Path, shape: dict[str, Any]) -> None:
    """Hold a state to the network that it is for, before that takes any memory.

    Args:
        build: makes the network; here on the meta device, where it has no values.
        state: its weights, by name.
        path:  that they come from, for errors.
        shape: the constructor's arguments, for errors.

    Raises:
        ValueError: if there is no such network; if it lacks a place for a tensor, or the state a tensor for a place; if
            a tensor is of another shape or kind.
    """
    try:
        places = without_values(build).state_dict()
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is of a network that can't be built, {shape}: {first_line(error)}") from None
    for name, place in places.items():
        if name not in state:
            raise ValueError(f"{path} lacks {name}, which a network of its shape ({shape}) has")
        if state[name].shape != place.shape:
            raise ValueError(f"{path}: {name} is {list(state[name].shape)}, not {list(place.shape)} as in {shape}")
        if not state[name].is_floating_point():
            raise ValueError(f"{path}: {name} is of {state[name].dtype}, not of floating-point numbers")
    extra = state.keys() - places.keys()
    if extra:
        raise ValueError(f"{path} holds {min(extra)}, which a network of its shape ({shape}) has not")


def fill(build: Callable[[], nn.Module], state: State, path: Path, shape: dict[str, Any]) -> nn.Module:
    """The network with a state that fits it in float32, frozen, in evaluation mode; ValueError if a value isn't finite.

    See `fit` for the arguments and for what else is refused.
    """
    fit(build, state, path, shape)
    state = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise ValueError(f"{path}: {name} holds values that are not finite")
    with Undrawn():
        model = build()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
