"""Bits per dimension of held-out latents, and the bound on those of their images, given labels."""

import math
from inspect import signature
from typing import Any

import torch

from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.data.sources import Source
from ldm.diffusion import log_likelihood as terms
from ldm.evaluation.image_sets import spread
from ldm.images import to_x
from ldm.metrics.statistics import pixel_sum, pixels_fingerprint
from ldm.runtime.bars import track


def check(source: Source, card: dict[str, Any], found: LoadedAutoencoder) -> None:
    """ValueError where these images have no likelihood under this model."""
    if not found.model.variational:
        raise ValueError("a plain autoencoder (regularizer=none) has no posterior, and so no bound: train one with kl")
    if source.preprocessing() != card["preprocessing"]:
        raise ValueError(
            f"these images are prepared as {source.preprocessing()}, the model's as {card['preprocessing']}"
        )
    if list(source.class_names) != list(card["class_names"]):
        raise ValueError(f"these images have the classes {source.class_names}, the model {card['class_names']}")


def bits_per_dim(
    model: LoadedDiffusion,
    found: LoadedAutoencoder,
    source: Source,
    num: int,
    batch_size: int,
    device: torch.device,
    seed: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Of a loaded diffusion model's latents, and a bound on those of their images, over `num` held-out images.

    options: of `ldm.diffusion.log_likelihood.log_likelihood`, whose defaults stand for those that are missing.
    """
    named = signature(terms.log_likelihood).parameters.values()
    options = {option.name: option.default for option in named if option.kind is option.KEYWORD_ONLY} | options
    net, autoencoder = model.net.to(device), found.model.to(device)
    torch.manual_seed(seed)
    with torch.inference_mode():
        seen = [to_x(image.to(device)) for image, _ in spread(source, "train", num, batch_size)]
        errors = [(x - autoencoder.decode(autoencoder.encode(x).sample())).abs().mean((1, 2, 3)) for x in seen]
    scale_of_errors = float(torch.cat(errors).mean())  # the most likely one of a Laplace distribution

    rows: dict[str, list[Any]] = {"decoder": [], "entropy": [], "latent": [], "error": []}
    evaluations = []
    batches, pixels_seen = list(spread(source, "val", num, batch_size)), 0
    if not batches:
        raise ValueError("no held-out image could be decoded")
    for image, y in track(batches, "likelihood"):
        pixels_seen += pixel_sum(image)
        image, y = image.to(device), y.to(device)
        with torch.no_grad():
            posterior = autoencoder.encode(to_x(image))
            z = posterior.sample()
            rows["decoder"].append(terms.decoder_log_likelihood(image, autoencoder.decode(z), scale_of_errors))
            rows["entropy"].append(terms.posterior_entropy(posterior.std).double())
        denoise = model.objective.denoiser(net, y)
        value = terms.log_likelihood(denoise, model.objective.path, model.stats.normalize(z), **options)
        rows["latent"].append(value.nats.double())
        rows["error"].append(value.standard_error.double())
        evaluations.append(value.evaluations)
    nats = {name: torch.cat(parts) for name, parts in rows.items()}
    pixels, dimensions = image[0].numel(), z[0].numel()
    scale = float(model.stats.std.double().log().sum()) * z[0, 0].numel()  # log |dz / d latent|
    bound = terms.bits_per_pixel_dim(nats["decoder"], nats["entropy"], nats["latent"] - scale, pixels)
    count, error = len(bound), float(nats["error"].mean())

    def in_bits(value: Any) -> float:
        return float(-value.mean() / (pixels * math.log(2)))

    return {
        "latent_bits_per_dim": float(-nats["latent"].mean() / (dimensions * math.log(2))),
        "image_bits_per_dim_at_most": float(bound.mean()),
        "standard_error": float(bound.std() / math.sqrt(count)) if count > 1 else None,
        "terms": {
            "decoder": in_bits(nats["decoder"]),
            "posterior_entropy": in_bits(nats["entropy"]),
            "latent": in_bits(nats["latent"] - scale),
        },
        # of one image's estimate; one probe does not tell
        "hutchinson_error_in_latent_bits": None if math.isnan(error) else error / (dimensions * math.log(2)),
        "images": count,
        "split": "val",
        "pixels": pixels_fingerprint(pixels_seen),
        "batch_size": batch_size,  # noise is drawn, and steps are chosen, for a batch
        "laplace_spread": scale_of_errors,
        "evaluations": sum(evaluations) / len(evaluations),
        "likelihood": options,
        "model": model.fingerprint,
        "autoencoder": found.fingerprint,
        "seed": seed,
    }
