"""From classes to images: noise, a guided sampler, the decoder; and what `ldm.load` returns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.checkpoint import (
    LoadedAutoencoder,
    LoadedDiffusion,
    kind_of,
    load_autoencoder,
    load_diffusion,
    matching_autoencoder,
)
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.objective import Objective, on_path
from ldm.diffusion.parameterization import scale
from ldm.diffusion.path import Path, log_snr, time_at
from ldm.diffusion.sampling import Record, Sampler, Sampling, check_times, grid_named, path_named, sampler_named
from ldm.diffusion.times import Grid
from ldm.images import to_image, x_of
from ldm.latents import LatentStats
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.ranges import Count, Natural, checked
from ldm.runtime.ranks import pick_device

Classes = Sequence[str | int] | Tensor | np.ndarray | str | int | None  # names or indices; None: all of them


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A model with one way to sample it.

    model:     the trained pair of stages
    sampling:  the sampler and the times that it walks
    guidance:  how the label is strengthened
    seed:      with a sample's index, it determines all of that sample's noise
    path:      what the sampler walks on; None is the path of training. On another path, it starts where that is as
               noisy as the end of training's: neither knows what lies beyond
    """

    model: "LatentDiffusionModel"
    sampling: Sampling
    guidance: Guidance
    seed: int
    path: Path | None = None

    def __post_init__(self) -> None:
        path, times = self._walk()
        check_times(path, times, self._latest())

    def _walk(self) -> tuple[Path, Tensor]:
        """The path and its times, [steps + 1]; on the CPU, so that samplers may look at them."""
        path = self.model.objective.path if self.path is None else self.path
        return path, self.sampling.grid(path, self.sampling.steps, self._latest())

    def _latest(self) -> float:
        """The time at which the path is as noisy as the path of training at t = 1."""
        if self.path is None:
            return 1.0
        return float(time_at(self.path, log_snr(self.model.objective.path(torch.ones((), dtype=torch.float64)))))

    @torch.no_grad()
    def latents(self, indices: Sequence[int], labels: Tensor, keep: int = 0) -> tuple[Tensor, Record]:
        """Normalised latents [B, C, h, w] of the samples with these indices and labels [B], and the record of the walk,
        with the states of the first `keep`."""
        model, noise = self.model, IndexedNoise(self.seed, indices)
        path, times = self._walk()
        x = noise.draw(model.latent_shape).to(labels.device) * scale(path(times[0]))
        net = self.guidance(model.net, model.net.null_class)  # type: ignore[arg-type]
        denoise = model.objective.denoiser(net, labels)
        record = Record(denoise if self.path is None else on_path(denoise, model.objective.path, path), keep)
        return self.sampling.walk(record, path, x, times, noise), record

    def images(self, indices: Sequence[int], labels: Tensor) -> tuple[Tensor, int]:
        """Images, uint8 [B, 3, H, W], and the denoiser's evaluations for each (guided, two of networks each)."""
        latents, record = self.latents(indices, labels)
        return self.model.decode(latents), record.evaluations

    def trajectory(self, label: Tensor, columns: int = 11) -> tuple[Tensor, list[float]]:
        """Sample 0, of the class label [1], on its way from noise, at up to `columns` times of its grid.

        Returns:
            K states x_t and then the x0 that the network predicts at each, decoded, uint8 [2 K, 3, H, W]; and the K
            times.
        """
        latents, record = self.latents([0], label, keep=1)
        grid = self._walk()[1].tolist()
        walked = {grid[-1]: (latents, latents)}
        for wanted in grid[:-1]:  # the state nearest to it: of several, the last, which the solver has corrected
            off = [round(abs(float(t) - wanted), 6) for t, _, _ in reversed(record.states)]
            t, x, x0 = record.states[-1 - off.index(min(off))]
            walked[float(t)] = (x, x0)
        times = sorted(walked, reverse=True)
        times = [times[i] for i in torch.linspace(0, len(times) - 1, min(columns, len(times))).long().tolist()]
        states = [walked[t][part] for part in (0, 1) for t in times]
        return self.model.decode(torch.cat(states)), times


@dataclass(frozen=True, kw_only=True, repr=False)
class LatentDiffusionModel:
    """Both stages of a trained model: it samples, encodes and decodes.

    net:           stage 2's network, net(x_t, t, y)
    objective:     what it has learned
    stats:         of the latents, as they were cached
    autoencoder:   stage 1; without one there are no images, only latents
    latent_shape:  C, h, w
    class_names:   of the labels 0, 1, ...
    sampling:      what is used where nothing else is said
    scale:         of guidance, likewise; 1 is unguided
    """

    net: nn.Module
    objective: Objective
    stats: LatentStats
    autoencoder: Autoencoder | None
    latent_shape: tuple[int, ...]
    class_names: Sequence[str]
    sampling: Sampling = Sampling()  # noqa: RUF009  # frozen
    scale: float = 1.0

    @classmethod
    def of(
        cls, loaded: LoadedDiffusion, autoencoder: LoadedAutoencoder, device: torch.device
    ) -> "LatentDiffusionModel":
        """Of a checkpoint and its autoencoder."""
        card = loaded.card
        guidance = card.get("config", {}).get("guidance", 1.0) if card["label_dropout"] > 0 else 1.0
        return cls(
            net=loaded.net.to(device),
            objective=loaded.objective,
            stats=loaded.stats,
            autoencoder=autoencoder.model.to(device),
            latent_shape=tuple(card["latent_shape"]),
            class_names=card["class_names"],
            sampling=loaded.sampling,
            scale=guidance,
        )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.latent_shape))
        return f"LatentDiffusionModel({len(self.class_names)} classes, latents of {shape}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        return next(self.net.parameters()).device

    def labels(self, classes: Classes = None) -> list[int]:
        """The indices of classes that are given by name or index; None is all of them.

        Raises:
            ValueError: for a class that the model has not.
        """
        names = list(self.class_names)
        if classes is None:
            return list(range(len(names)))
        given: Any = classes.tolist() if isinstance(classes, Tensor | np.ndarray | np.integer) else classes
        given = [given] if isinstance(given, str | int) else given
        indices = [names.index(c) if isinstance(c, str) and c in names else c for c in given]
        if not indices or not all(type(c) is int and 0 <= c < len(names) for c in indices):  # True is no class
            named = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise ValueError(
                f"classes={classes} must be null, or name some of 0 ... {len(names) - 1} or of their names: {named}"
            )
        return [int(c) for c in indices]

    def in_turn(self, classes: Classes, n: int | None) -> Tensor:
        """The labels of n images, [n], whose classes are taken in turn, see `labels`; None is one a class."""
        chosen = self.labels(classes)
        return torch.tensor([chosen[i % len(chosen)] for i in range(len(chosen) if n is None else n)])

    @checked
    def generator(
        self,
        *,
        sampler: str | Sampler | None = None,
        steps: Count | None = None,
        grid: str | Grid | None = None,
        path: str | Path | None = None,
        guidance: float | Guidance | None = None,
        seed: Natural = 0,
    ) -> Generator:
        """One way to sample this model; what is None is as its objective wants it. See `sample`.

        Raises:
            ValueError: for a name that there is not, or for a sampler, grid and path that do not fit each other.
        """
        given: dict[str, Any] = {
            "function": sampler_named(sampler) if isinstance(sampler, str) else sampler,
            "steps": steps,
            "grid": grid_named(grid) if isinstance(grid, str) else grid,
        }
        guidance = self.scale if guidance is None else guidance
        return Generator(
            model=self,
            sampling=replace(self.sampling, **{key: value for key, value in given.items() if value is not None}),
            guidance=guidance if isinstance(guidance, Guidance) else Guidance(scale=guidance),
            seed=seed,
            path=path_named(path) if isinstance(path, str) else path,
        )

    @checked
    def sample(
        self,
        classes: Classes = None,
        n: Count | None = None,
        *,
        sampler: str | Sampler | None = None,
        steps: Count | None = None,
        grid: str | Grid | None = None,
        path: str | Path | None = None,
        guidance: float | Guidance | None = None,
        seed: Natural = 0,
        batch_size: Count = 250,
    ) -> Tensor:
        """Images, uint8 [n, 3, H, W].

        classes:    names or indices, taken in turn; None is all of them
        n:          how many images; None is one a class
        sampler:    a name of `ldm.diffusion.samplers`, or a function like those; None: as the model's objective wants
        steps:      of the grid; likewise
        grid:       a name of `ldm.diffusion.times` (uniform, karras, ...), or a function like those; likewise
        path:       linear, cosine, vp or ve, or a path: what the sampler walks on; None: the path of training
        guidance:   1 is unguided; a `Guidance` has more choices; None: the scale of the sample grids in training
        seed:       with an image's place in the result, it determines the image
        batch_size: images at once; it changes nothing but speed and memory
        """
        labels = self.in_turn(classes, n)
        generator = self.generator(sampler=sampler, steps=steps, grid=grid, path=path, guidance=guidance, seed=seed)
        parts = [range(i, min(i + batch_size, len(labels))) for i in range(0, len(labels), batch_size)]
        return torch.cat([generator.images(part, labels[list(part)].to(self.device))[0] for part in parts])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W] -> latents [B, C, h, w]: the posterior's mean, normalised."""
        return self.stats.normalize(self._stage1().encode(x_of(images, self.device)).mean)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents, normalised, [B, C, h, w] -> images, uint8 [B, 3, H, W]."""
        return to_image(self._stage1().decode(self.stats.denormalize(latents.to(self.device))))

    def _stage1(self) -> Autoencoder:
        if self.autoencoder is None:
            raise ValueError("this model has no autoencoder: it samples latents alone")
        return self.autoencoder


@dataclass(frozen=True, repr=False)
class AutoencoderModel:
    """A trained autoencoder: it encodes and decodes."""

    autoencoder: Autoencoder

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W] -> z [B, C, h, w]: the posterior's mean."""
        return self.autoencoder.encode(x_of(images, self.device)).mean

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] -> images, uint8 [B, 3, H, W]."""
        return to_image(self.autoencoder.decode(z.to(self.device)))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.autoencoder.last_layer.device

    def __repr__(self) -> str:
        return f"AutoencoderModel(images / {self.autoencoder.downsample_factor}, on {self.device})"


def load_model(
    run: str | FilePath, *, device: str, weights: str, autoencoder: str | None, trust: Sequence[str]
) -> LatentDiffusionModel | AutoencoderModel:
    """What `ldm.load` says."""
    where = pick_device(device)
    if kind_of(FilePath(run)) == "autoencoder":
        if autoencoder is not None or weights != "ema":
            raise ValueError(f"{run} holds an autoencoder: autoencoder= and weights= are for diffusion models")
        return AutoencoderModel(load_autoencoder(run).model.to(where))
    return LatentDiffusionModel.of(*load_stages(run, weights, autoencoder, trust), where)


def load_stages(
    run: str | FilePath, weights: str, autoencoder: str | None, trust: Sequence[str]
) -> tuple[LoadedDiffusion, LoadedAutoencoder]:
    """A diffusion model, and the autoencoder of its latents: see `load_diffusion` and `matching_autoencoder`."""
    loaded = load_diffusion(run, weights, trust)
    card = loaded.card
    return loaded, matching_autoencoder(autoencoder, card["autoencoder_path"], loaded.run, card["autoencoder"])
