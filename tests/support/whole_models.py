"""Both stages of a model with random weights, as checkpoints that every command takes."""

from pathlib import Path
from typing import Any

import torch
from support.cards import autoencoder_card, diffusion_card

from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion, export_autoencoder, export_diffusion
from ldm.generate.loading import load_stages
from ldm.models.autoencoder import Autoencoder
from ldm.models.dit import DiT
from ldm.models.unet import UNet
from ldm.weights import weights_fingerprint

NET: dict[str, Any] = {
    "in_channels": 2,
    "num_classes": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "head_channels": 16,
}


def write_model(
    folder: Path,
    objective: dict[str, Any],
    sampling: dict[str, Any],
    student: dict[str, Any] | None = None,
    whitening: list[list[float]] | None = None,
    **net: Any,
) -> Path:
    """Write a model's two runs below a folder; returns stage 2's."""
    shape = {key: value for key, value in (NET | net).items() if value is not None}
    card = autoencoder_card()
    autoencoder = _shaken(Autoencoder(**card["autoencoder"]))
    file = folder / "ae" / "checkpoints" / "00000000.ckpt"
    export_autoencoder(LoadedAutoencoder(file, autoencoder, card, weights_fingerprint(autoencoder)), file)
    target: type[UNet] | type[DiT] = UNet
    if "depth" in net:
        target, shape = DiT, {"in_channels": 2, "num_classes": 3, "latent_size": [8, 8], "patch": 2} | net
    card = diffusion_card(
        net={"_target_": f"{target.__module__}.{target.__name__}"} | shape,
        objective=objective,
        sampling=sampling,
        stats={"mean": [0.3, -0.2], "std": [1.5, 0.7]} | ({} if whitening is None else {"whitening": whitening}),
        latent_shape=[2, 8, 8],
        class_names=["cat", "dog", "emu"],
        autoencoder=weights_fingerprint(autoencoder),
        autoencoder_path="../ae",
        **({} if student is None else {"student": student}),
    )
    run = folder / "flow"
    export_diffusion(_shaken(target(**shape)), card, run / "checkpoints" / "00000000.ckpt")
    return run


def load(run: Path) -> tuple[LoadedDiffusion, LoadedAutoencoder]:
    return load_stages(run, "ema", None, ())


def _shaken(model: torch.nn.Module) -> Any:
    """Random values where the network starts at zero."""
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()
