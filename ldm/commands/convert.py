"""Models from elsewhere into a run folder, and ours into diffusers' format."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.commands.entry import plain, write_config

NEVER_TRAINED = {"batches_seen": 0, "images_seen": 0, "rollbacks": 0, "config": {}}
FILE = "00000000.ckpt"


def main(config: DictConfig, run: Path) -> None:
    actions = {
        ("autoencoder", "ldm"): autoencoder_to_ldm,
        ("autoencoder", "diffusers"): autoencoder_to_diffusers,
        ("diffusion", "ldm"): diffusion_to_ldm,
        ("diffusion", "diffusers"): diffusion_to_diffusers,
    }
    if (config.what, config.to) not in actions:
        raise ValueError(
            f"what={config.what} to={config.to}: what must be autoencoder or diffusion, to ldm or diffusers"
        )
    actions[config.what, config.to](config, Path(config.source), run)


def autoencoder_to_ldm(config: DictConfig, source: Path, run: Path) -> None:
    from ldm.checkpoint import FOLDER, LoadedAutoencoder, export_autoencoder, fingerprint
    from ldm.exchange.autoencoder_weights import import_autoencoder

    model, shape, scaling = import_autoencoder(source)
    card = {"kind": "autoencoder", "autoencoder": shape, "scaling": scaling, "imported_from": source.name}
    file = run / FOLDER / FILE
    write_config(config, run)
    export_autoencoder(LoadedAutoencoder(file, model, card | NEVER_TRAINED, fingerprint(model)), file)
    print(f"autoencoder in {run}: {', '.join(f'{k}={v}' for k, v in shape.items())}")


def autoencoder_to_diffusers(config: DictConfig, source: Path, run: Path) -> None:
    from ldm.checkpoint import CARD, load_autoencoder
    from ldm.exchange.autoencoder_weights import export_diffusers

    loaded = load_autoencoder(source)
    scaling = scaling_of(config, loaded)
    write_config(config, run)
    resolution = (loaded.card.get("preprocessing") or {}).get("resolution")
    export_diffusers(loaded.model, loaded.card["autoencoder"], scaling, run, resolution)
    print(f"diffusers AutoencoderKL in {run}: {', '.join(scaling)} in config.json; {CARD} {loaded.fingerprint}")


def diffusion_to_ldm(config: DictConfig, source: Path, run: Path) -> None:
    from ldm.checkpoint import FOLDER, export_diffusion, load_autoencoder
    from ldm.exchange.unet_weights import import_unet

    if config.autoencoder is None:
        raise ValueError("what=diffusion needs autoencoder=RUN, the one that its latents come from (import it first)")
    heads = {
        key: config[key] for key in ("head_channels", "num_heads", "num_heads_upsample") if config[key] is not None
    }
    autoencoder = load_autoencoder(config.autoencoder)
    net, shape, factor = import_unet(source, heads, config.null_class, config.attention_order)
    channels = autoencoder.card["autoencoder"]["latent_channels"]
    if shape["in_channels"] != channels:
        raise ValueError(
            f"{source} takes latents of {shape['in_channels']} channels, {config.autoencoder} makes {channels}"
        )
    if shape.get("context_dim") is not None and shape.get("label_as") != "context":
        raise ValueError(f"{source} wants a context beside the label (a text's, say), which no command here gives")
    scaling = autoencoder.card.get("scaling") or {}
    factor = config.scaling_factor or factor or scaling.get("scaling_factor")
    if factor is None:
        raise ValueError("nothing says how these latents are scaled: pass scaling_factor=NUMBER")
    card = {
        "kind": "diffusion",
        "net": {"_target_": "ldm.models.unet.UNet"} | shape,
        "objective": plain(config.objective),
        "label_dropout": 0.1 if config.null_class and shape["num_classes"] > 1 else 0.0,  # what counts is whether
        "stats": {"mean": [scaling.get("shift_factor") or 0.0] * channels, "std": [1 / factor] * channels},
        "latent_shape": [channels, config.latent_size, config.latent_size],
        "class_names": [str(i) for i in range(shape["num_classes"])],
        "preprocessing": {"resolution": config.latent_size * autoencoder.model.downsample_factor},
        "autoencoder": autoencoder.fingerprint,
        "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
        "imported_from": source.name,
    }
    write_config(config, run)
    export_diffusion(net, card | NEVER_TRAINED, run / FOLDER / FILE)
    print(f"diffusion model in {run}: {', '.join(f'{k}={v}' for k, v in shape.items())}; latents x {factor:g}")


def diffusion_to_diffusers(config: DictConfig, source: Path, run: Path) -> None:
    from ldm.checkpoint import load_diffusion
    from ldm.exchange.unet_weights import export_unet
    from ldm.models.unet import UNet

    loaded = load_diffusion(source)
    if not isinstance(loaded.net, UNet):
        raise ValueError(f"{source} holds a {type(loaded.net).__name__}, which diffusers has not")
    shape = {key: value for key, value in loaded.card["net"].items() if key != "_target_"}
    write_config(config, run)
    export_unet(loaded.net, shape, run, loaded.card["latent_shape"][-1])
    offset = loaded.net.time_offset
    print(f"diffusers U-Net in {run}: timesteps 1000 t - {offset:g}, latents normalised as {source}'s card says")


def scaling_of(config: DictConfig, loaded: Any) -> dict[str, Any]:
    """What a user of the export must scale latents with: measured on a cache, given, or as it was imported."""
    from ldm.data.cache_reader import LatentCache

    if config.latents is not None:
        cache = LatentCache(config.latents, "size")
        if cache.manifest["autoencoder"] != loaded.fingerprint:
            raise ValueError(
                f"latents={config.latents} were made with the autoencoder {cache.manifest['autoencoder']}, but "
                f"source={config.source} holds {loaded.fingerprint}"
            )
        # diffusers computes (z - mean) / std x factor where it finds both
        return {"latents_mean": cache.manifest["mean"], "latents_std": cache.manifest["std"], "scaling_factor": 1.0}
    if config.scaling_factor is not None:
        return {"scaling_factor": float(config.scaling_factor)}
    if loaded.card.get("scaling"):
        return dict(loaded.card["scaling"])
    raise ValueError(
        "nothing says how these latents are scaled: pass latents=RUN of a cache made with this autoencoder (its mean "
        "and std are measured), or scaling_factor=NUMBER"
    )
