"""Bits per dimension of held-out latents, and the bound on those of their images, both given the label."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.conditioning.low_resolution import Upscale
from ldm.conditioning.text import needs_caption
from ldm.data.sources import Source
from ldm.diffusion import log_likelihood as terms
from ldm.diffusion.autoregressive import Autoregressive, code_bound
from ldm.evaluation.image_sets import spread
from ldm.images import to_x
from ldm.metrics.statistics import pixel_sum, pixels_fingerprint
from ldm.runtime.bars import track


@dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """The bound of a pair of stages on held-out images (ldm.diffusion.log_likelihood has its terms).

    Args:
        model      : the diffusion model
        autoencoder: the one that its latents are of
        source     : of the images; prepared, and with the classes, as in training
        num        : held-out images that are bounded, and training images to which the decoder's spread is fitted
        seed       : of the posterior's samples and of Hutchinson's probes
        options    : of `log_likelihood`, whose defaults stand for those that are missing; of a model of codes steps
                     alone: the numbers of hidden places that are looked at, null for all

    Raises:
        ValueError: where these images have no likelihood under this model.
    """

    model: LoadedDiffusion
    autoencoder: LoadedAutoencoder
    source: Source
    num: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        card, preparation = self.model.card, self.source.preprocessing()
        if isinstance(self.model.conditioning, Upscale):
            raise ValueError("the model is told small pictures, which likelihood has none of: choose another model=")
        if needs_caption(self.model.conditioning, card["label_dropout"]):
            raise ValueError(
                "the model was never trained without a caption (label_dropout=0), and is told none here: choose "
                "another model="
            )
        given = {key: value for key, value in self.options.items() if value != defaults()[key]}
        if self.of_codes and (other := given.keys() - {"steps"}):
            raise ValueError(f"likelihood.{min(other)} is of latents' ODE, and this model makes codes: leave it out")
        if not self.of_codes and self.autoencoder.model.quantize is not None:
            raise ValueError(
                "the model makes vectors that its decoder rounds to codes, which leaves no bound: cache-latents "
                "codes=true and objective=ardm have one"
            )
        if not self.of_codes and not self.autoencoder.model.variational:
            raise ValueError("a plain autoencoder (regularizer=none) has no posterior and no bound: train one with kl")
        if preparation != card["preprocessing"]:
            raise ValueError(f"these images are prepared as {preparation}, the model's as {card['preprocessing']}")
        if list(self.source.class_names) != list(card["class_names"]):
            raise ValueError(
                f"these images have the classes {self.source.class_names}, the model {card['class_names']}"
            )

    @property
    def of_codes(self) -> bool:
        """Whether the model makes codes, of which there is no posterior."""
        return self.model.objective.of_codes

    def measure(self, batch_size: int, device: torch.device) -> dict[str, Any]:
        """The bound, its terms, and what they depend on: likelihood.json."""
        options = defaults() | self.options
        if self.of_codes:
            places = math.prod(self.model.card["latent_shape"])
            options = {"steps": min(options["steps"] or places, places)}
        torch.manual_seed(self.seed)
        decoder_spread = self._decoder_spread(batch_size, device)
        nats, counted = self._nats(batch_size, device, decoder_spread, options)
        by_hidden = {"by_hidden": _filled(nats.pop("by_hidden"))} if self.of_codes else {}
        return {
            **self._in_bits(nats),
            **by_hidden,
            "images": len(nats["latent"]),
            "split": "val",
            "pixels": pixels_fingerprint(counted["pixels"]),
            "batch_size": batch_size,  # noise is drawn, and an adaptive solver's steps are chosen, for a batch
            "laplace_spread": decoder_spread,
            "evaluations": counted["evaluations"] / counted["batches"],
            "likelihood": options,
            "model": self.model.fingerprint,
            "autoencoder": self.autoencoder.fingerprint,
            "seed": self.seed,
        }

    @torch.inference_mode()
    def _decoder_spread(self, batch_size: int, device: torch.device) -> float:
        """The Laplace distribution's scale under which the decoder's errors on training images are most likely."""
        model, errors = self.autoencoder.model.to(device), []
        for image, _ in spread(self.source, "train", self.num, batch_size):
            x = to_x(image.to(device))
            z = model.codes(x) if self.of_codes else model.encode(x).sample()
            errors.append((x - model.decode(z)).abs().mean((1, 2, 3)))
        return float(torch.cat(errors).mean())

    def _nats(
        self, batch_size: int, device: torch.device, decoder_spread: float, options: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The bound's terms in nats, [N] each, with the latent's standard error; and what was counted meanwhile."""
        self.autoencoder.model.to(device), self.model.net.to(device)
        parts, counted = defaultdict[str, list[Tensor]](list), defaultdict[str, int](int)
        batches = list(spread(self.source, "val", self.num, batch_size))
        if not batches:
            raise ValueError("no held-out image could be decoded")
        for image, y in track(batches, "likelihood"):
            counted["pixels"] += pixel_sum(image)
            of_batch = self._code_nats if self.of_codes else self._latent_nats
            z, found, evaluations = of_batch(image.to(device), y.to(device), options)
            with torch.no_grad():
                x_hat = self.autoencoder.model.decode(z)
            found["decoder"] = terms.decoder_log_likelihood(image.to(device), x_hat, decoder_spread)
            for name, value in found.items():
                parts[name].append(value)
            counted["evaluations"] += evaluations
            counted["batches"] += 1
        return {name: torch.cat(column) for name, column in parts.items()}, counted

    def _latent_nats(self, image: Tensor, y: Tensor, options: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], int]:
        """Of images with labels y: latents drawn from their posteriors, the terms of these, and the evaluations."""
        with torch.no_grad():
            posterior = self.autoencoder.model.encode(to_x(image))
            z = posterior.sample()
        told = self.model.conditioning.of_labels(y, self.model.null)
        denoise = self.model.objective.denoiser(self.model.net, told)
        value = terms.log_likelihood(denoise, self.model.objective.path, self.model.stats.normalize(z), **options)
        found = {
            "entropy": terms.posterior_entropy(posterior.std).double(),
            "latent": value.nats.double(),
            "error": value.standard_error.double(),
        }
        return z, found, value.evaluations

    @torch.no_grad()
    def _code_nats(self, image: Tensor, y: Tensor, options: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], int]:
        """Likewise of codes, and the losses by place with 1 ... D places hidden, [B, D], NaN where there is none."""
        objective = self.model.objective
        assert isinstance(objective, Autoregressive)
        codes = self.autoencoder.model.codes(to_x(image))
        told = self.model.conditioning.of_labels(y, self.model.null)
        bound, losses, numbers = code_bound(objective, self.model.net, codes, told, options["steps"])
        by_hidden = torch.full((len(codes), codes[0].numel()), math.nan, dtype=torch.float64)
        by_hidden.scatter_(1, numbers.T - 1, losses.T.cpu())
        unknown = torch.full_like(bound, math.nan)  # what one order an image leaves open is in the spread over images
        found = {"latent": -bound, "entropy": torch.zeros_like(bound), "error": unknown, "by_hidden": by_hidden}
        return codes, found, len(numbers)

    def _in_bits(self, nats: dict[str, Tensor]) -> dict[str, Any]:
        """The bound and its terms per dimension of the image, and the latent's alone per dimension of the latent."""
        channels, height, width = self.model.card["latent_shape"]
        latent_bits = channels * height * width * math.log(2)
        pixels = 3 * self.source.resolution**2
        log_scale = self.model.stats.log_scale * height * width
        raw = nats["latent"] - log_scale
        bound = terms.bits_per_pixel_dim(nats["decoder"], nats["entropy"], raw, pixels)
        shown = {"decoder": nats["decoder"], "posterior_entropy": nats["entropy"], "latent": raw}
        error = float(nats["error"].mean())
        return {
            "latent_bits_per_dim": float(-nats["latent"].mean() / latent_bits),
            "image_bits_per_dim_at_most": float(bound.mean()),
            "standard_error": float(bound.std() / math.sqrt(len(bound))) if len(bound) > 1 else None,
            "terms": {name: 0.0 - float(value.mean() / (pixels * math.log(2))) for name, value in shown.items()},
            # of one image's estimate; a single probe does not tell it
            "hutchinson_error_in_latent_bits": None if math.isnan(error) else error / latent_bits,
        }


def defaults() -> dict[str, Any]:
    """The options of `log_likelihood`."""
    named = signature(terms.log_likelihood).parameters.values()
    return {option.name: option.default for option in named if option.kind is option.KEYWORD_ONLY}


def _filled(by_hidden: Tensor) -> list[float]:
    """The means of what was found [N, D], NaN where nothing was; between two, along a straight line."""
    means = by_hidden.nanmean(0).numpy()
    there = np.flatnonzero(~np.isnan(means))
    return np.interp(np.arange(len(means)), there, means[there]).tolist()
