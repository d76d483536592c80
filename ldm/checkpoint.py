"""Checkpoints: files that say what they hold, and are read without running what they hold.

A file is a Lightning checkpoint, loaded by torch's weights_only reader, or a folder: see `ldm.sharded_checkpoint`.
Under the key "ldm" it has a card, a plain dict that describes the model: its constructors' arguments, what it was
trained on, what it is to be used with. The state_dict is that of the averaged (EMA) weights, and must fit the model
that the card describes to the last tensor.

A card may name code: a network, a path. Only ldm.models and ldm.diffusion are built from a card that nobody vouches
for; other packages must be named in `trust`, by whoever trains and by whoever loads.
"""

import errno
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.card import build_from_card, check_card
from ldm.condition import Condition
from ldm.conditioning.labels import Conditioning, Labels
from ldm.diffusion.checks import checked_objective, objective_kind
from ldm.diffusion.objective import Objective
from ldm.diffusion.sampling import Sampling
from ldm.latents import LatentStats
from ldm.models.autoencoder import Autoencoder
from ldm.runtime import targets
from ldm.runtime.arguments import ArgumentError, check_arguments
from ldm.runtime.files import atomic_write
from ldm.runtime.wrong import first_line
from ldm.sharded_checkpoint import check_shards, is_sharded_checkpoint, read_rest, read_whole
from ldm.weights import Undrawn, check_weights, check_zip, part_of, weights_fingerprint

log = logging.getLogger(__name__)

AVERAGES = "averages"  # of a run, by their widths
CARD = "ldm"
FOLDER = "checkpoints"
AUTOENCODER_PREFIX = "autoencoder."  # of stage 1's tensors in a state_dict, where the discriminator's are, too
NET_PREFIX = "net."  # of stage 2's, beside those of a weighting that learns
KINDS = {"autoencoder": "an autoencoder (stage 1)", "diffusion": "a diffusion model (stage 2)"}


@dataclass(frozen=True)
class LoadedAutoencoder:
    """A stage-1 model in evaluation mode."""

    path: Path  # the checkpoint's file
    model: Autoencoder
    card: dict[str, Any]
    fingerprint: str  # of the weights


@dataclass(frozen=True)
class LoadedDiffusion:
    """A stage-2 model in evaluation mode, with all that sampling needs."""

    run: Path  # the folder that paths in the card are relative to
    net: nn.Module
    objective: Objective
    sampling: Sampling  # that fits the objective
    conditioning: Conditioning
    stats: LatentStats
    card: dict[str, Any]
    fingerprint: str  # of the weights

    @property
    def null(self) -> Condition:
        """What its network is told, in one row, where nothing is said."""
        return self.conditioning.null(len(self.card["class_names"]), tuple(self.card["latent_shape"]))


# files


class DamagedError(ValueError):
    """The file is not a complete checkpoint."""


def kind_of(path: Path) -> str:
    """What a run folder or a checkpoint file holds: "autoencoder" or "diffusion"."""
    _, checkpoint = find(path, None)
    return checkpoint[CARD]["kind"]


def find(path: Path, kind: str | None, tensors: bool = True) -> tuple[Path, dict[str, Any]]:
    """Read a checkpoint or, of a run folder, the last that is not damaged; warns of later ones.

    Args:
        path: a checkpoint, or a run folder, whose checkpoints lie in FOLDER
        kind: "autoencoder" or "diffusion"; None: either
        tensors: False leaves out those of a sharded checkpoint, if this is one

    Returns:
        the checkpoint, and what it holds.

    Raises:
        ValueError: if there is no checkpoint, or none that is complete and of that kind.
    """
    if not path.is_dir() or is_sharded_checkpoint(path):
        if not path.exists():
            raise ValueError(f"{path} holds no checkpoint ({FOLDER}/*.ckpt): train it first, or name another run")
        return path, read(path, kind, tensors)
    damaged: list[DamagedError] = []
    for file in reversed(saved(path)):
        try:
            found = read(file, kind, tensors)
        except DamagedError as error:
            damaged.append(error)
        else:
            for why in damaged:
                log.warning("%s: going back to the one before it", why)
            return file, found
    if damaged:
        raise ValueError(f"{path} holds no checkpoint that is whole: {damaged[0]}: train it again, or name another run")
    raise ValueError(f"{path} holds no checkpoint ({FOLDER}/*.ckpt): train it first, or name another run")


def newest(run: Path) -> Path | None:
    """A run folder's last checkpoint, damaged or not; None if there is none."""
    return next(reversed(saved(run)), None)


def saved(run: Path) -> list[Path]:
    """A run folder's checkpoints, the oldest first: those named by their batches, and no copy beside them."""
    files = [file for file in (run / FOLDER).glob("*.ckpt") if file.stem.isdecimal()]
    return sorted(files, key=lambda file: int(file.stem))


def read(file: Path, kind: str | None, tensors: bool = True) -> dict[str, Any]:
    """Load a checkpoint of a kind ("autoencoder" or "diffusion"; None: either), once its CRC-32 sums are checked.

    tensors: as in `find`

    Raises:
        DamagedError: if it is damaged, or no checkpoint at all.
        ValueError: if it holds something else.
    """
    if file.suffix in (".safetensors", ".bin", ".pt"):
        raise ValueError(f"{file} was not written by ldm: `ldm convert source={file}` imports an autoencoder")
    sharded = is_sharded_checkpoint(file)
    if not sharded and not file.is_file():
        raise DamagedError(f"{file} is no regular file")
    try:
        if sharded:
            check_shards(file)
            checkpoint = read_whole(file) if tensors else read_rest(file)
        else:
            check_zip(file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader and Python's raise whatever a damaged file leads them to
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise  # the disk or the memory failed, and the file may be whole
        raise DamagedError(f"{file} is damaged or no checkpoint ({first_line(error)})") from None
    if not isinstance(checkpoint, dict) or CARD not in checkpoint:
        raise ValueError(f"{file} was not written by ldm: it has no {CARD!r} entry")
    if not isinstance(checkpoint.get("state_dict"), dict) or {type(name) for name in checkpoint["state_dict"]} - {str}:
        raise DamagedError(f"{file} holds no weights (state_dict)")
    try:
        check_card(checkpoint[CARD])
    except ValueError as error:
        raise ValueError(f"{file}: {error}: take another checkpoint of its run") from None
    held = checkpoint[CARD]["kind"]
    if kind not in (None, held):
        raise ValueError(f"{file} holds {KINDS[held]}, but {KINDS[kind]} is wanted here")
    return checkpoint


# models


def load_autoencoder(path: str | Path) -> LoadedAutoencoder:
    """Rebuild a stage-1 model from a checkpoint file or a run folder."""
    file, checkpoint = find(Path(path), "autoencoder")
    arguments = checkpoint[CARD]["autoencoder"]
    try:
        arguments = check_arguments(Autoencoder, arguments)
    except ArgumentError as error:
        raise ValueError(f"{file}: its card's autoencoder{error}: take another checkpoint of its run") from None
    state = part_of(checkpoint["state_dict"], AUTOENCODER_PREFIX)
    check_weights(lambda: Autoencoder(**arguments), state, file)
    with Undrawn():
        model = Autoencoder(**arguments)
    _load(model, state)
    return LoadedAutoencoder(file, model, checkpoint[CARD], weights_fingerprint(model))


def load_diffusion(path: str | Path, weights: str | float = "ema", trust: str | Sequence[str] = ()) -> LoadedDiffusion:
    """Rebuild a stage-2 model.

    Args:
        path: a checkpoint file or a run folder.
        weights: "ema", the averaged ones, or "raw", those of the last step; or the width of an average that
            `ldm average` has made of a run, as 0.1.
        trust: packages, beside ldm, whose code the model may be built from.

    Raises:
        ValueError: if there is no such checkpoint, or it names code of other packages.
    """
    path = Path(path)
    if isinstance(weights, float | int):
        path, weights = averaged_file(path, weights), "ema"
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights} must be ema, raw or the width of an average, as 0.1")
    file, checkpoint = find(path, "diffusion")
    card = checkpoint[CARD]
    # cards from before there was a sampling mean the defaults
    parts = {"objective": card["objective"], "sampling": card.get("sampling", {})}
    parts |= {"condition": card["condition"]} if card.get("condition") else {}
    if weights == "raw" and "current_model_state" not in checkpoint:
        raise ValueError(f"{file} holds averaged weights alone: pass weights=ema")
    state = part_of(checkpoint["current_model_state" if weights == "raw" else "state_dict"], NET_PREFIX)

    def build_net() -> Any:
        return build_from_card({"net": card["net"]}, trust, named_in=str(file))["net"]

    check_weights(build_net, state, file)
    with Undrawn() if str(card["net"][targets.TARGET]).startswith("ldm.") else nullcontext():
        net = build_net()
    built = build_from_card(parts, trust, named_in=str(file))
    if getattr(net, "null_class", None) != len(card["class_names"]):
        raise ValueError(f"{file}: its card's net is not built for {len(card['class_names'])} classes")
    _load(net, state)
    stats = LatentStats.of(card["stats"])
    try:
        for name, kind in (("objective", objective_kind(parts["objective"])), ("sampling", Sampling)):
            try:
                check_arguments(kind, parts[name])
            except ArgumentError as error:
                raise ValueError(f"{name}{error}") from None
        objective, sampling = checked_objective(built["objective"]), Sampling(**built["sampling"])
    except ValueError as error:
        raise ValueError(f"{file}: of its card, {error}") from None
    run = file.parents[1] if len(file.parents) > 1 else file.absolute().parents[1]
    return LoadedDiffusion(
        run, net, objective, sampling, built.get("condition", Labels()), stats, card, weights_fingerprint(net)
    )


def averaged_file(run: Path, width: float, there: bool = True) -> Path:
    """Where `ldm average` writes the average of this width of a run; ValueError if it should be there, and is not."""
    file = run / AVERAGES / f"sigma_rel-{width:g}.ckpt"
    if there and run.is_dir() and not file.exists():
        raise ValueError(f"{file} is not there: ldm average model={run} sigma_rel=[{width:g}] makes it")
    if not run.is_dir():
        raise ValueError(f"weights={width:g} is an average of a run, and {run} is a file: name the run's folder")
    return file


def matching_autoencoder(
    given: str | None, recorded: str, recorded_in: Path, wanted_fingerprint: str
) -> LoadedAutoencoder:
    """Load the autoencoder that a cache or a model was made with.

    Args:
        given: its path; None for the recorded one.
        recorded: its path as the cache or model records it, relative to `recorded_in`.
        recorded_in: the folder of that cache or model.
        wanted_fingerprint: that its weights must have.

    Raises:
        ValueError: if there is none, or its weights are others.
    """
    path = Path(given) if given is not None else Path(recorded_in, recorded)
    if not path.exists():
        raise ValueError(f"the autoencoder that {recorded_in} was made with is not at {path}: pass autoencoder=PATH")
    autoencoder = load_autoencoder(path)
    if autoencoder.fingerprint != wanted_fingerprint:
        raise ValueError(
            f"{recorded_in} was made with the autoencoder {wanted_fingerprint}, but {path} holds "
            f"{autoencoder.fingerprint}: pass autoencoder=PATH of the right one, or cache the latents again into a new "
            "run folder"
        )
    return autoencoder


def export_autoencoder(autoencoder: LoadedAutoencoder, file: Path) -> None:
    """Write the averaged weights alone: a checkpoint that only `load_autoencoder` reads, and that nothing prunes."""
    _export(autoencoder.model, AUTOENCODER_PREFIX, autoencoder.card, file)


def export_diffusion(net: nn.Module, card: dict[str, Any], file: Path) -> None:
    """Write a network alone: a checkpoint that only `load_diffusion` reads."""
    _export(net, NET_PREFIX, card, file)


def _export(model: nn.Module, prefix: str, card: dict[str, Any], file: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    with atomic_write(file) as stream:
        torch.save({CARD: card, "state_dict": state}, stream)


def _load(model: nn.Module, state: dict[str, Any]) -> None:
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
