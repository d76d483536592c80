"""Bits per dimension of held-out latents, and the bound on those of their images, given labels: likelihood.json."""

from pathlib import Path

from omegaconf import DictConfig

from ldm.commands.entry import build, plain, whole, write_config


def main(config: DictConfig, run: Path) -> None:
    from ldm.checkpoint import load_diffusion, matching_autoencoder
    from ldm.evaluation.bits_per_dim import bits_per_dim, check
    from ldm.runtime.files import write_json
    from ldm.runtime.ranks import pick_device

    model = load_diffusion(config.model, config.weights)
    card = model.card
    found = matching_autoencoder(config.autoencoder, card["autoencoder_path"], model.run, card["autoencoder"])
    num, batch_size = whole(config, "num"), whole(config, "batch_size")
    device, options = pick_device(config.device), plain(config.likelihood)
    source = build(config.data)
    check(source, card, found)
    write_config(config, run)
    result = bits_per_dim(model, found, source, num, batch_size, device, config.seed, options)
    write_json(run / "likelihood.json", result | {"weights": config.weights})
    print(f"latents: {result['latent_bits_per_dim']:.4f} bits/dim")
    print(f"images: at most {result['image_bits_per_dim_at_most']:.4f} bits/dim; terms in {run}/likelihood.json")
