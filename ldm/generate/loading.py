"""From run folders and checkpoints to models."""

from collections.abc import Sequence
from pathlib import Path

from ldm.checkpoint import (
    LoadedAutoencoder,
    LoadedDiffusion,
    kind_of,
    load_autoencoder,
    load_diffusion,
    matching_autoencoder,
)
from ldm.generate.autoencoding import AutoencoderModel
from ldm.generate.model import LatentDiffusionModel
from ldm.runtime.ranks import pick_device
from ldm.runtime.stores import is_address, local_copy


def load_model(
    run: str | Path,
    *,
    device: str,
    weights: str | float,
    autoencoder: str | None,
    trust: Sequence[str],
    text_encoder: str | None = None,
) -> LatentDiffusionModel | AutoencoderModel:
    """What `ldm.load` says."""
    where = pick_device(device)
    run = local_copy(str(run), "run") if is_address(str(run)) else run
    if kind_of(Path(run)) == "autoencoder":
        if autoencoder is not None or weights != "ema":
            raise ValueError(f"{run} holds an autoencoder: autoencoder= and weights= are for diffusion models")
        return AutoencoderModel(load_autoencoder(run).model.to(where))
    return LatentDiffusionModel.of(*load_stages(run, weights, autoencoder, trust), where).read_by(text_encoder)


def load_stages(
    run: str | Path, weights: str | float, autoencoder: str | None, trust: Sequence[str]
) -> tuple[LoadedDiffusion, LoadedAutoencoder]:
    """A diffusion model, and the autoencoder of its latents: see `load_diffusion` and `matching_autoencoder`."""
    loaded = load_diffusion(run, weights, trust)
    card = loaded.card
    return loaded, matching_autoencoder(autoencoder, card["autoencoder_path"], loaded.run, card["autoencoder"])
