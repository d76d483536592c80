"""Files of weights from elsewhere, read without executing anything in them, and folders as diffusers has them."""

import codecs
import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ldm.runtime.files import atomic_write, write_json

State = dict[str, Tensor]
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class _Inert:
    """Takes the place of a class that an old checkpoint names beside its weights; does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


# what checkpoints of Lightning 1.x hold beside tensors: a callback's class, and a NumPy scalar, its best score
HARMLESS: list[Any] = [
    *(
        (_Inert, name)
        for name in ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "argparse.Namespace")
    ),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(name)) for name in ("float32", "float64", "int64")},
    (codecs.encode, "_codecs.encode"),
]


def read_tensors(path: Path) -> State:
    """The tensors of a .ckpt, .pt, .bin or .safetensors file by name, of its "state_dict" where it has one.

    Raises:
        ValueError: that names the file, if it does not exist, is damaged, or refers to anything but tensors.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a .ckpt, .safetensors or a diffusers folder")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"refers to {global_name[1]}, which is no tensor" if global_name else "is no checkpoint"
        raise ValueError(f"{path} {what}: nothing of it was executed. Ask for a .safetensors file") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {(str(error) or 'empty').splitlines()[0]}") from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    items = state.items() if isinstance(state, dict) else ()
    return {str(k): v for k, v in items if isinstance(v, Tensor)}


def read_diffusers_weights(folder: Path) -> State:
    """The tensors of a diffusers folder: safetensors are read before .bin, both before a variant such as .fp16."""
    files = [f for kind in (".safetensors", ".bin") for f in folder.glob(f"diffusion_pytorch_model*{kind}")]
    if not files:
        raise ValueError(f"{folder} holds no {WEIGHTS}")
    return read_tensors(min(files, key=lambda file: (file.suffix != ".safetensors", len(file.name))))


def write_diffusers(folder: Path, config: dict[str, Any], state: State) -> None:
    """Write config.json and the weights as safetensors."""
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save({k: v.contiguous() for k, v in state.items()}, metadata={"format": "pt"}))
    write_json(folder / CONFIG, json.loads(json.dumps(config)))


def fill(model: nn.Module, state: State, path: Path, shape: dict[str, Any]) -> None:
    """Load a state into a model in float32, and freeze the model in evaluation mode.

    Raises:
        ValueError: that names `path`, the tensor and `shape` (the constructor's arguments), if the model lacks a place
            for a tensor, or the state a tensor for a place, or if a value is not finite.
    """
    state = {k: v.float() for k, v in state.items()}
    for name, wanted in model.state_dict().items():
        if name not in state:
            raise ValueError(f"{path} lacks {name}, which a network of its shape ({shape}) has")
        if state[name].shape != wanted.shape:
            raise ValueError(f"{path}: {name} is {list(state[name].shape)}, not {list(wanted.shape)} as in {shape}")
        if not state[name].isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
    extra = state.keys() - model.state_dict().keys()
    if extra:
        raise ValueError(f"{path} holds {min(extra)}, which a network of its shape ({shape}) has not")
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
