"""Autoencoders from elsewhere into a run folder, and ours into diffusers' format."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.command import command, write_config


@command
def main(config: DictConfig, run: Path) -> None:
    from ldm.checkpoint import CARD, FOLDER, LoadedAutoencoder, export_autoencoder, fingerprint, load_autoencoder
    from ldm.exchange import export_diffusers, import_autoencoder

    source = Path(config.source)
    if config.to == "ldm":
        model, shape, scaling = import_autoencoder(source)
        card = {
            "kind": "autoencoder",
            "autoencoder": shape,
            "scaling": scaling,
            "imported_from": source.name,
            "batches_seen": 0,
            "images_seen": 0,
            "rollbacks": 0,
            "config": {},
        }
        file = run / FOLDER / "00000000.ckpt"
        write_config(config, run)
        export_autoencoder(LoadedAutoencoder(file, model, card, fingerprint(model)), file)
        print(f"autoencoder in {run}: {', '.join(f'{k}={v}' for k, v in shape.items())}")
    elif config.to == "diffusers":
        loaded = load_autoencoder(source)
        scaling = scaling_of(config, loaded)
        write_config(config, run)
        resolution = (loaded.card.get("preprocessing") or {}).get("resolution")
        export_diffusers(loaded.model, loaded.card["autoencoder"], scaling, run, resolution)
        print(f"diffusers AutoencoderKL in {run}: {', '.join(scaling)} in config.json; {CARD} {loaded.fingerprint}")
    else:
        raise ValueError(f"to={config.to} must be ldm or diffusers")


def scaling_of(config: DictConfig, loaded: Any) -> dict[str, Any]:
    """What a user of the export must scale latents with: measured on a cache, given, or as it was imported."""
    from ldm.data.latents import LatentCache

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


if __name__ == "__main__":
    main()
