"""What stage 2 trains on: a cache, or images that it encodes itself."""

import inspect
import pydoc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.checkpoint import (
    CARD,
    LoadedAutoencoder,
    LoadedDiffusion,
    export_autoencoder,
    find,
    load_autoencoder,
    matching_autoencoder,
    newest,
)
from ldm.commands.options import build
from ldm.conditioning.labels import Conditioning
from ldm.data.cache_reader import LatentCache
from ldm.data.encoded_images import EncodedImages, Latents
from ldm.data.formats import MANIFEST
from ldm.data.shard_writer import AUTOENCODER_FILE
from ldm.diffusion.coupling import Coupling
from ldm.images import to_x
from ldm.losses.alignment import Alignment, Tap
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.files import sha256
from ldm.runtime.loggers import Artifact, artifact
from ldm.runtime.ranks import pick_device
from ldm.training.data_modules import EncodedData, LatentData, TrainingData
from ldm.training.trainer import RankBatch

if TYPE_CHECKING:
    from ldm.commands.train_diffusion import TrainDiffusionOptions


def latents_of(
    options: "TrainDiffusionOptions", run: Path, reads: Sequence[str], teacher: LoadedDiffusion | None
) -> tuple[Latents, LoadedAutoencoder]:
    """The latents, and the autoencoder that they are of; images on the fly keep a copy of it in the run's folder.

    Raises:
        ValueError: if the condition `reads` what images on the fly do not have.
    """
    if options.latents is not None:
        cache = LatentCache(options.latents, options.verify)
        loaded = matching_autoencoder(options.autoencoder, AUTOENCODER_FILE, cache.folder, cache.autoencoder)
        return cache, replace(loaded, path=run / AUTOENCODER_FILE) if _keeps_its_own(options) else loaded
    if reads:
        raise ValueError(f"condition= reads {' and '.join(reads)} of a cache: ldm cache-latents, then latents=RUN")
    assert options.autoencoder is not None
    loaded, stats = load_autoencoder(options.autoencoder), None if teacher is None else teacher.card["stats"]
    if newest(run) is not None:  # by which it goes on, whatever a first few images would say now
        stats = find(run, "diffusion", tensors=False)[1][CARD]["stats"]
    images = EncodedImages(
        source=build(options.data),
        encode=encoding(loaded.model),
        device=training_device(options),
        autoencoder=loaded.fingerprint,
        batch_size=options.batch_size,
        stats=stats,
        whiten=options.whiten,
    )
    return images, replace(loaded, path=run / AUTOENCODER_FILE)


def check_codes(options: "TrainDiffusionOptions", latents: Latents) -> None:
    """ValueError unless an objective of codes has them, and no other."""
    if options.objective.codes is None:
        if latents.codes is not None:
            raise ValueError(
                f"latents={options.latents} are codes: choose objective=ardm, or cache latents by codes=false"
            )
        return
    if latents.codes is None:
        where = (
            f"latents={options.latents} is no cache of codes" if options.latents else "latents=null encodes no codes"
        )
        raise ValueError(f"objective=ardm learns codes, and {where}: ldm cache-latents codes=true, then latents=RUN")
    if "codes" not in inspect.signature(pydoc.locate(options.net["_target_"])).parameters:  # type: ignore[arg-type]
        raise ValueError(
            f"net: objective=ardm builds its network with codes={latents.codes}, which {options.net['_target_']} does "
            "not take (docs/extending.md): choose another net="
        )


def check_told(conditioning: Conditioning, latents: Latents) -> dict[str, Any]:
    """What a condition builds the network with; ValueError where that stands beside codes."""
    built = conditioning.network(latents.latent_shape)
    if latents.codes is not None and built.get("concat_channels"):
        raise ValueError("objective=ardm takes labels and text, and no pictures: choose another condition=")
    return built


def _keeps_its_own(options: "TrainDiffusionOptions") -> bool:
    """Whether the run has a copy of its autoencoder: where there is no cache, or one that is a copy itself."""
    return options.latents is None or options.is_remote("latents", "autoencoder")


def encoding(model: Autoencoder) -> Callable[[Tensor], Tensor]:
    """image, uint8 [B, 3, R, R] -> moments [B, 2C, h, w], where the image is."""
    model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(image: Tensor) -> Tensor:
        return model.to(image.device).encode(to_x(image)).moments()

    return encode


def begin(options: "TrainDiffusionOptions", run: Path, autoencoder: LoadedAutoencoder) -> None:
    """Open the run folder; what encodes there lies in it, as its own run may train on."""
    options.begin(run)
    if _keeps_its_own(options) and (newest(run) is None or not autoencoder.path.exists()):
        export_autoencoder(autoencoder, autoencoder.path)


def alignment_of(options: "TrainDiffusionOptions", tap: Tap | None, latents: Latents) -> Alignment | None:
    """What aligns a layer, whose block has just been called, with features that the latents keep.

    Raises:
        ValueError: if they keep none.
    """
    if tap is None:
        return None
    if isinstance(latents, EncodedImages) or latents.features is None:
        raise ValueError(
            f"align.layer={options.align.layer} needs dense features of the images beside latents={options.latents}: "
            "ldm cache-latents features=FILE"
        )
    width = tap.take(latents.latent_shape[1:]).shape[1]
    chosen = options.align.model_dump(exclude={"layer"})
    return Alignment(tap=tap, width=width, channels=latents.features.channels, **chosen)


def aligned_card(alignment: Alignment | None, latents: Latents) -> dict[str, Any]:
    """What a card says of the features that a layer is aligned with, so that the run goes on with no others."""
    if alignment is None or isinstance(latents, EncodedImages) or latents.features is None:
        return {}
    return {"aligned": latents.features.identity}


def data_of(
    options: "TrainDiffusionOptions", latents: Latents, coupling: Coupling, conditioning: Conditioning, batch: RankBatch
) -> TrainingData:
    """What Lightning reads batches from."""
    shared: dict[str, Any] = {"batch": batch, "num_workers": options.num_workers, "seed": options.seed}
    shared["overfit"] = options.overfit
    if isinstance(latents, EncodedImages):
        return EncodedData(images=latents, **shared)
    aligned = options.align.layer is not None
    return LatentData(cache=latents, coupling=coupling, conditioning=conditioning, aligned=aligned, **shared)


def artifact_of(latents: Latents, autoencoder: LoadedAutoencoder) -> Artifact:
    """What a run is made from, for wandb's lineage."""
    if isinstance(latents, EncodedImages):
        return artifact("autoencoder", autoencoder.fingerprint, autoencoder.path)
    return artifact("latents", sha256(latents.folder / MANIFEST), latents.folder)


def training_device(options: "TrainDiffusionOptions") -> torch.device:
    """Where this rank will train."""
    return pick_device("cpu" if options.trainer.accelerator == "cpu" else "auto")
