"""From labels to images: noise, guided sampler, decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm.diffusion.guidance import Guidance
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.objective import Denoise, Objective, on_path
from ldm.diffusion.parameterization import Prediction, scale
from ldm.diffusion.path import Path, log_snr, time_at
from ldm.diffusion.times import Grid
from ldm.images import to_image
from ldm.latents import LatentStats
from ldm.models.autoencoder import Autoencoder


class Sampler(Protocol):
    """A function of `ldm.diffusion.samplers`, its own options bound."""

    def __call__(self, denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> Tensor: ...


class StochasticSampler(Protocol):
    """One that draws noise."""

    def __call__(self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, *, noise: IndexedNoise) -> Tensor: ...


@dataclass
class Record:
    """Counts a denoiser's evaluations and keeps the first sample's states on request."""

    denoise: Denoise
    keep: bool = False
    evaluations: int = 0
    states: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # (t, x_t, x0), [1, C, h, w] each

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        prediction = self.denoise(x_t, t)
        self.evaluations += 1
        if self.keep:
            self.states.append((t, x_t[:1], prediction.x0[:1]))
        return prediction


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A trained pair of stages with a way to sample.

    Args:
        net, objective, stats: stage 2.
        autoencoder: stage 1.
        latent_shape: C, h, w.
        function: one of `ldm.diffusion.samplers`, its options bound; stochastic says whether it takes `noise`.
        steps, grid: the times that it walks.
        path: what it walks on; None is the path of training. On another, it starts where that is as noisy as the end of
            training's: neither knows what lies beyond.
        guidance: how conditions are strengthened.
        seed: with a sample's index, it determines all of that sample's noise.
    """

    net: nn.Module
    objective: Objective
    stats: LatentStats
    autoencoder: Autoencoder
    latent_shape: tuple[int, ...]
    function: Sampler | StochasticSampler
    stochastic: bool
    steps: int
    grid: Grid
    guidance: Guidance
    seed: int
    path: Path | None = None

    def __post_init__(self) -> None:
        walked, times = self._walk()
        c = walked(times[:-1])
        if not all(value.isfinite().all() for value in c) or (times.diff() >= 0).any():
            raise ValueError(
                "sampler and path do not fit: the grid's times must fall, and the path be finite at them, "
                f"not {[round(float(t), 6) for t in times]}"
            )

        if len(times) > 8 and (last := float(c.sigma[-1] / c.alpha[-1])) > 1.5:
            raise ValueError(
                f"sampler and path do not fit: the last of {self.steps} steps starts at sigma / alpha = {last:.2f}, "
                "with all detail still to come: pass grid=karras or log_snr"
            )

    def _walk(self) -> tuple[Path, Tensor]:
        """The path and its times, [steps + 1]; on the CPU, so that samplers may look at them."""
        if self.path is None:
            return self.objective.path, self.grid(self.objective.path, self.steps, 1.0)
        end = log_snr(self.objective.path(torch.ones((), dtype=torch.float64)))
        return self.path, self.grid(self.path, self.steps, float(time_at(self.path, end)))

    @torch.no_grad()
    def latents(self, indices: Sequence[int], labels: Tensor, keep: bool = False) -> tuple[Tensor, Record]:
        """Normalised latents [B, C, h, w] of the samples with these indices and labels [B]."""
        noise = IndexedNoise(self.seed, indices)
        path, times = self._walk()
        x = noise.draw(self.latent_shape).to(labels.device) * scale(path(times[0]))
        net = self.guidance(self.net, self.net.null_class)  # type: ignore[arg-type]
        denoise = self.objective.denoiser(net, labels)
        record = Record(denoise if self.path is None else on_path(denoise, self.objective.path, path), keep)
        options = {"noise": noise} if self.stochastic else {}
        return self.function(record, path, x, times, **options), record

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images, uint8 [B, 3, H, W]."""
        return to_image(self.autoencoder.decode(self.stats.denormalize(latents)))

    def images(self, indices: Sequence[int], labels: Tensor) -> tuple[Tensor, int]:
        """Images, uint8 [B, 3, H, W], and the denoiser's evaluations for each (guided, two of networks each)."""
        latents, record = self.latents(indices, labels)
        return self.decode(latents), record.evaluations
