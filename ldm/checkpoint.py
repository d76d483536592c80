"""Checkpoints say what they hold: read with weights_only, rebuilt from the card stored inside, loaded strictly.

The card is a plain dict under the key "ldm" of a Lightning checkpoint, whose state_dict is the averaged (EMA) weights.
"""

import hashlib
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch import nn

from ldm.diffusion.objective import Objective
from ldm.diffusion.sampling import Sampling
from ldm.latents import LatentStats
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.files import atomic_write

log = logging.getLogger(__name__)

CARD = "ldm"
FOLDER = "checkpoints"
AUTOENCODER = "autoencoder."  # prefix of its entries in a state_dict


@dataclass(frozen=True)
class LoadedAutoencoder:
    """A stage-1 model in evaluation mode."""

    path: Path  # the checkpoint's file
    model: Autoencoder
    card: dict[str, Any]
    fingerprint: str  # of the weights


@dataclass(frozen=True)
class LoadedDiffusion:
    """A stage-2 model in evaluation mode with all that sampling needs."""

    run: Path  # the folder that paths in the card are relative to
    net: nn.Module
    objective: Objective
    sampling: Sampling  # that fits the objective
    stats: LatentStats
    card: dict[str, Any]
    fingerprint: str  # of the weights


class DamagedError(ValueError):
    """A file that is no whole checkpoint."""


def kind_of(path: Path) -> str:
    """What a run folder or a checkpoint file holds: "autoencoder" or "diffusion"."""
    _, checkpoint = find(path, None)
    return checkpoint[CARD]["kind"]


def find(path: Path, kind: str | None) -> tuple[Path, dict[str, Any]]:
    """Load the path itself or, of a run folder, the last checkpoint that is whole; says so if a later one is not.

    Raises:
        ValueError: if there is none, or it is damaged or of another kind.
    """
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"{path} holds no checkpoint ({FOLDER}/*.ckpt): train it first, or name another run")
        return path, read(path, kind)
    files = sorted((path / FOLDER).glob("*.ckpt"), reverse=True)
    for file in files:
        try:
            return file, read(file, kind)
        except DamagedError as error:
            log.warning("%s: going back to the one before it", error)
    damaged = f" that is whole: all {len(files)} are damaged" if files else ""
    raise ValueError(f"{path} holds no checkpoint ({FOLDER}/*.ckpt){damaged}: train it first, or name another run")


def newest(run: Path) -> Path | None:
    """A run folder's last checkpoint; None if there is none."""
    return max((run / FOLDER).glob("*.ckpt"), default=None, key=lambda path: path.name)


def read(file: Path, kind: str | None) -> dict[str, Any]:
    """Load a checkpoint file of a kind ("autoencoder" or "diffusion"; None: either); each entry's CRC-32 is checked.

    Raises:
        ValueError: if it is damaged, or if it holds something else.
    """
    if file.suffix in (".safetensors", ".bin", ".pt"):
        raise ValueError(f"{file} was not written by ldm: `ldm convert source={file}` imports an autoencoder")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} fails its checksum")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, UnpicklingError) as error:
        raise DamagedError(f"{file} is damaged or no checkpoint ({str(error).splitlines()[0]})") from None
    if CARD not in checkpoint:
        raise ValueError(f"{file} was not written by ldm: it has no {CARD!r} entry")
    found = checkpoint[CARD]["kind"]
    if kind not in (None, found):
        article = {"autoencoder": "an autoencoder (stage 1)", "diffusion": "a diffusion model (stage 2)"}
        raise ValueError(f"{file} holds {article[found]}, but {article[kind]} is wanted here")
    return checkpoint


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over the names, shapes, types and bytes of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_autoencoder(path: str | Path) -> LoadedAutoencoder:
    """Rebuild a stage-1 model from a checkpoint file or a run folder."""
    file, checkpoint = find(Path(path), "autoencoder")
    model = Autoencoder(**checkpoint[CARD]["autoencoder"])
    _load(model, checkpoint, AUTOENCODER, file)
    return LoadedAutoencoder(file, model, checkpoint[CARD], fingerprint(model))


def export_autoencoder(autoencoder: LoadedAutoencoder, file: Path) -> None:
    """Write the averaged weights alone: a checkpoint that only `load_autoencoder` reads, and that nothing prunes."""
    state = {f"{AUTOENCODER}{name}": tensor for name, tensor in autoencoder.model.state_dict().items()}
    with atomic_write(file) as stream:
        torch.save({CARD: autoencoder.card, "state_dict": state}, stream)


def export_diffusion(net: nn.Module, card: dict[str, Any], file: Path) -> None:
    """Write a network alone: a checkpoint that only `load_diffusion` reads."""
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    with atomic_write(file) as stream:
        torch.save({CARD: card, "state_dict": state}, stream)


def load_diffusion(path: str | Path, weights: str = "ema") -> LoadedDiffusion:
    """Rebuild a stage-2 model from a checkpoint file or a run folder, with its averaged ("ema") or "raw" weights."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights} must be ema or raw")
    file, checkpoint = find(Path(path), "diffusion")
    card = checkpoint[CARD]
    net = build(card["net"])
    if weights == "raw":
        if "current_model_state" not in checkpoint:
            raise ValueError(f"{file} holds averaged weights alone: pass weights=ema")
        checkpoint["state_dict"] = checkpoint["current_model_state"]
    _load(net, checkpoint, "net.", file)
    stats = LatentStats(torch.tensor(card["stats"]["mean"]), torch.tensor(card["stats"]["std"]))
    sampling = Sampling(**build(card.get("sampling", {})))  # cards from before there was one mean the defaults
    objective = Objective(**build(card["objective"]))
    return LoadedDiffusion(file.parents[1], net, objective, sampling, stats, card, fingerprint(net))


def build(config: dict[str, Any]) -> Any:
    """Instantiate a config that names only our networks and mathematics: no checkpoint can make us call other code."""
    _refuse_foreign(config)
    return instantiate(config, _convert_="all")


def _refuse_foreign(config: Any) -> None:
    if isinstance(config, dict):
        target = config.get("_target_")
        if target is not None:
            module = getattr(get_object(target), "__module__", "") if str(target).startswith("ldm.") else ""
            if not module.startswith(("ldm.models.", "ldm.diffusion.")):
                raise ValueError(f"refusing to build {target}: only ldm.models and ldm.diffusion may be named here")
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            _refuse_foreign(value)


def _load(model: nn.Module, checkpoint: dict[str, Any], prefix: str, path: Path) -> None:
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model that its own card describes: {error}") from None
    model.eval().requires_grad_(False)


def matching_autoencoder(given: str | None, recorded: str, recorded_in: Path, wanted: str) -> LoadedAutoencoder:
    """The autoencoder that a cache or model was made with, from the given path or the recorded one (relative to
    `recorded_in`); ValueError if its weights are not the ones with the wanted fingerprint."""
    path = Path(given) if given is not None else Path(recorded_in, recorded)
    if not path.exists():
        raise ValueError(f"the autoencoder that {recorded_in} was made with is not at {path}: pass autoencoder=PATH")
    autoencoder = load_autoencoder(path)
    if autoencoder.fingerprint != wanted:
        raise ValueError(
            f"{recorded_in} was made with the autoencoder {wanted}, but {path} holds {autoencoder.fingerprint}: pass "
            "autoencoder=PATH of the right one, or cache the latents again into a new run folder"
        )
    return autoencoder
