"""Trained models as Python sees them: they sample, encode and decode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.card import usual_guidance
from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.condition import Condition
from ldm.conditioning.labels import Conditioning, Labels
from ldm.conditioning.low_resolution import Upscale
from ldm.conditioning.text import Embeddings, Text
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import Path
from ldm.diffusion.sampling import Sampler, Sampling, grid_named, path_named, sampler_named
from ldm.diffusion.times import Grid
from ldm.generate.generator import STRENGTH, Generator, Origin
from ldm.images import to_image, x_of
from ldm.latents import LatentStats
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.ranges import Count, Natural, checked

PIXELS = 8 * 256**2  # that a decoder makes at once: of more, it would take more memory than training does
Prompts = str | Sequence[str]
Classes = Sequence[str | int] | Tensor | np.ndarray | str | int | None  # names or indices; None: all of them


def decoded_at_once(resolution: int) -> int:
    """How many images of so many pixels a side are decoded together."""
    return max(1, PIXELS // resolution**2)


def size_for(net: nn.Module, latent_size: Sequence[int] | int) -> tuple[int, int]:
    """Height and width, of them or of a side; ValueError where a network cannot be asked for such latents."""
    given = [latent_size] * 2 if isinstance(latent_size, int) else list(latent_size)
    factor = int(getattr(net, "downsample_factor", 1))
    if len(given) != 2 or any(side < 1 or side % factor for side in given):
        raise ValueError(
            f"latent_size={latent_size} must be a side or [height,width], in multiples of {factor} for this network"
        )
    return given[0], given[1]


@dataclass(frozen=True, kw_only=True, repr=False)
class LatentDiffusionModel:
    """Both stages of a trained model: it samples, encodes and decodes.

    net:           stage 2's network, net(x_t, t, condition)
    objective:     what it has learned
    stats:         of the latents, as they were cached
    autoencoder:   stage 1; without one there are no images, only latents
    latent_shape:  C, h, w
    class_names:   of the labels 0, 1, ...
    sampling:      what is used where nothing else is said
    scale:         of guidance, likewise; 1 is unguided
    conditioning:  what it is told beside a label
    """

    net: nn.Module
    objective: Objective
    stats: LatentStats
    autoencoder: Autoencoder | None
    latent_shape: tuple[int, ...]
    class_names: Sequence[str]
    sampling: Sampling = Sampling()  # noqa: RUF009  # frozen
    scale: float = 1.0
    conditioning: Conditioning = Labels()  # noqa: RUF009  # it has no state

    @classmethod
    def of(
        cls, loaded: LoadedDiffusion, autoencoder: LoadedAutoencoder, device: torch.device
    ) -> "LatentDiffusionModel":
        """Of a checkpoint and its autoencoder."""
        card = loaded.card
        return cls(
            net=loaded.net.to(device),
            objective=loaded.objective,
            stats=loaded.stats,
            autoencoder=autoencoder.model.to(device),
            latent_shape=tuple(card["latent_shape"]),
            class_names=card["class_names"],
            sampling=loaded.sampling,
            conditioning=loaded.conditioning,
            scale=usual_guidance(card),
        )

    def __repr__(self) -> str:
        what, shape = ("codes", self.latent_shape[1:]) if self.of_codes else ("latents", self.latent_shape)
        sizes = " x ".join(map(str, shape))
        return f"LatentDiffusionModel({len(self.class_names)} classes, {what} of {sizes}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        return next(self.net.parameters()).device

    @property
    def null(self) -> Condition:
        """What its network is told, in one row, where nothing is said."""
        return self.conditioning.null(len(self.class_names), self.latent_shape)

    def told(self, condition: Condition | Tensor) -> Condition:
        """A condition, or labels [B] alone as one that says nothing else."""
        return condition if isinstance(condition, Condition) else self.conditioning.of_labels(condition, self.null)

    def read_by(self, text_encoder: str | None) -> "LatentDiffusionModel":
        """The same model, whose pretrained text encoder lies elsewhere; None is where training had it.

        Raises:
            ValueError: where it has none.
        """
        if text_encoder is None:
            return self
        if not isinstance(self.conditioning, Embeddings):
            raise ValueError(f"text_encoder={text_encoder} is of a model that has one (condition=text_encoder)")
        return replace(self, conditioning=self.conditioning.read_by(text_encoder))

    def asked(self, classes: Classes = None, n: int | None = None, prompts: Prompts | None = None) -> Condition:
        """What n samples are told, which take its rows in turn; None is one for each class or text.

        Raises:
            ValueError: for a text or classes where the model was told none, and for what is made by another command.
        """
        if isinstance(self.conditioning, Upscale):
            raise ValueError("the model makes large pictures of small ones: ldm upscale (ldm.generate.upscaling)")
        if prompts is None:
            labels = self.in_turn(classes, n)
            return self.told(labels[: self._period(classes)])
        texts = [prompts] if isinstance(prompts, str) else [str(text) for text in prompts]
        if not isinstance(self.conditioning, Text):
            raise ValueError("prompts= is of a model of text (condition=text or text_encoder): this one takes none")
        if not texts:
            raise ValueError("prompts= holds no text: write one, or leave it out")
        rows = math.lcm(len(texts), self._period(classes))
        rows = min(rows, len(texts) if n is None else n)
        said = self.conditioning.prompts(texts, torch.zeros(len(texts), dtype=torch.long))
        return said.turn(range(rows))._replace(label=self.in_turn(classes, rows))

    def _period(self, classes: Classes) -> int:
        """After how many samples the classes begin anew."""
        return len(self.labels(classes)) if self.conditioning.labels else 1

    @property
    def of_codes(self) -> bool:
        """Whether it makes codes, not latents."""
        return self.objective.of_codes

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images, in pixels."""
        height, width = self.latent_shape[1:]
        factor = self._stage1().downsample_factor
        return height * factor, width * factor

    @property
    def resolution(self) -> int:
        """The longer side of its images, in pixels."""
        return max(self.image_size)

    def sized(self, latent_size: Sequence[int] | int) -> "LatentDiffusionModel":
        """The same model for latents of another size than in its training: see `size_for`."""
        return replace(self, latent_shape=(self.latent_shape[0], *size_for(self.net, latent_size)))

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
        """The labels of n images, [n], whose classes are taken in turn, see `labels`; None is one a class. Of a model
        that was told no labels, the null class."""
        if not self.conditioning.labels:
            if classes is not None:
                raise ValueError(f"classes={classes}: the model was told no labels: leave it out, or pass prompts=")
            return torch.full((n or 1,), len(self.class_names))
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
        origin: Origin | None = None,
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
        if self.of_codes and (path is not None or origin is not None):
            raise ValueError("path= and from= (start=) are of latents, and this model makes codes: leave them out")
        return Generator(
            model=self,
            sampling=replace(self.sampling, **{key: value for key, value in given.items() if value is not None}),
            guidance=guidance if isinstance(guidance, Guidance) else Guidance(scale=guidance),
            seed=seed,
            path=path_named(path) if isinstance(path, str) else path,
            origin=origin,
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
        latent_size: Sequence[Count] | Count | None = None,
        prompts: Prompts | None = None,
        start: Tensor | None = None,
        strength: float = STRENGTH,
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
        latent_size: see `sized`; None: as in training
        prompts:     texts, taken in turn, of a model that was trained on captions; None: nothing is said
        start:       images, uint8 [P, 3, H, W], that are noised and then made anew (SDEdit), in turn; None: noise
        strength:    how far, in (0, 1]: see `Origin`
        """
        model = self if latent_size is None else self.sized(latent_size)
        told = model.asked(classes, n, prompts)
        generator = model.generator(
            sampler=sampler, steps=steps, grid=grid, path=path, guidance=guidance, seed=seed,
            origin=None if start is None else Origin(latents=model.encode(start), strength=strength),
        )  # fmt: skip
        num = len(told.label) if n is None else n
        parts = [range(i, min(i + batch_size, num)) for i in range(0, num, batch_size)]
        return torch.cat([generator.images(part, told.turn(part).to(self.device))[0] for part in parts])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W] -> latents [B, C, h, w]: the posterior's mean, normalised; of a model of codes,
        those, long [B, 1, h, w]."""
        if self.of_codes:
            return self._stage1().codes(x_of(images, self.device))
        return self.stats.normalize(self._stage1().encode(x_of(images, self.device)).mean)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents, normalised, [B, C, h, w], or codes, long [B, 1, h, w] (below 0: not known) -> images, uint8
        [B, 3, H, W]; `decoded_at_once` at a time.

        Raises:
            ValueError: for latents of a model of codes, or the other way round, and for codes that there are not.
        """
        self.objective.check_states(latents)
        parts = torch.split(self.stats.denormalize(latents.to(self.device)), decoded_at_once(self.resolution))
        return torch.cat([to_image(self._stage1().decode(part)) for part in parts])

    def _stage1(self) -> Autoencoder:
        if self.autoencoder is None:
            raise ValueError("this model has no autoencoder: it samples latents alone")
        return self.autoencoder
