"""Make pictures of more pixels from small ones: a PNG a draw, and a grid of small pictures, bicubic and draws."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from ldm.card import check_guidance
from ldm.commands.draws import begun, check_names, in_parts, labels_of, save_draws
from ldm.commands.options import Free, GridChoice, ResultOptions, SamplerOptions, Text, Weights, build
from ldm.data.picture_files import Pictures
from ldm.diffusion.guidance import Guidance
from ldm.evaluation.result_files import UpscaleFile, which_weights
from ldm.generate.generator import Generator
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.generate.upscaling import multiple_for, sized_for, upscale_of, upscaled
from ldm.images import annotate, enlarged, grid, save_png, shrunk
from ldm.metrics.reconstruction import psnr
from ldm.runtime.bars import track
from ldm.runtime.memory import check_batch
from ldm.runtime.ranges import Count, Fraction, NonNegative
from ldm.runtime.ranks import gather, pick_device, precision

SHOWN = 8  # pictures in grid.png, and draws of each

log = logging.getLogger(__name__)


class UpscaleOptions(ResultOptions):
    """conf/upscale.yaml, which says what each key means."""

    model: Text
    autoencoder: Text | None
    images: Text
    shrink: bool
    classes: str | int | None
    draws: Annotated[int, Interval(ge=1, le=64)]
    noise: Fraction
    sampler: SamplerOptions
    grid: GridChoice
    weights: Weights
    guidance: NonNegative
    num: Count | None
    batch_size: Annotated[Count, Free()]
    device: Annotated[str, Free()]


def main(options: UpscaleOptions, run: Path) -> None:
    loaded, autoencoder = load_stages(options.model, options.weights, options.autoencoder, options.trust)
    check_guidance(loaded.card, options.guidance, weak=False)
    model = LatentDiffusionModel.of(loaded, autoencoder, pick_device(options.device))
    factor = upscale_of(model).factor
    resize = (loaded.card["preprocessing"] or {}).get("resize")
    pictures = Pictures(options.images, model.resolution, resize, options.num, whole=not options.shrink)
    labels = labels_of(options, model, loaded.card["label_dropout"], pictures)
    check_names(pictures)
    for i in range(len(pictures)):  # a damaged or too small one is refused before anything is written
        name, given = pictures[i]
        if not options.shrink and (cut := _cut(given, name, model)).shape != given.shape:
            log.warning("%s: cut to %d x %d pixels, which the network takes", name, cut.shape[2], cut.shape[1])
    check_batch(options.batch_size, 3, *model.image_size)
    generators = Generators(options, model)
    share = begun(options, run, pictures)
    own: dict[int, list[Tensor]] = {}
    ratios: dict[int, dict[str, float]] = {}
    for index, name, given, small, draws in drawn(options, generators, (pictures, labels), share):
        save_draws(run, name, draws)
        bicubic = enlarged(small, factor)
        if options.shrink:
            made = {"bicubic": bicubic, "draw": draws[0], "mean of draws": _mean(draws)}
            ratios[index] = {what: float(psnr(image[None], given[None])) for what, image in made.items()}
        if index < SHOWN:
            pixels = small.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            own[index] = [pixels, bicubic, *draws[:SHOWN], *([given] if options.shrink else [])]
    shares = gather((own, ratios))
    if not shares:  # on every rank but the first
        return
    rows, ratios = ({k: v for part in parts for k, v in part.items()} for parts in zip(*shares, strict=True))
    shown = [image for index in sorted(rows) for image in rows[index] if rows[index][0].shape == rows[0][0].shape]
    columns = ["small", "bicubic", *(f"draw {k}" for k in range(min(options.draws, SHOWN)))]
    columns += ["picture"] if options.shrink else []
    save_png(run / "grid.png", annotate(grid(torch.stack(shown), len(columns)), columns=columns))
    kinds = ratios[0] if options.shrink else []
    means = {what: sum(ratios[index][what] for index in sorted(ratios)) / len(ratios) for what in kinds}
    UpscaleFile(
        model=loaded.fingerprint,
        autoencoder=autoencoder.fingerprint,
        weights=which_weights(options.weights),
        factor=factor,
        noise=options.noise,
        guidance=options.guidance,
        seed=options.seed,
        pictures=len(pictures),
        draws=options.draws,
        psnr=means,
        precision=precision(model.device),
        **generators.of(*model_small(model)).sampling.describe(),
    ).write(run / "upscale.json")
    said = "".join(f", {what} {value:.2f} dB" for what, value in means.items())
    print(f"{len(pictures)} pictures x {options.draws} draws in {run}: images/, grid.png, upscale.json{said}")


def model_small(model: LatentDiffusionModel) -> tuple[int, int]:
    """Height and width of the small pictures of training."""
    return upscale_of(model).small_size(model.latent_shape)


def _mean(draws: Tensor) -> Tensor:
    return draws.float().mean(0).round().to(torch.uint8)


class Generators:
    """How a model is sampled for small pictures of each size."""

    def __init__(self, options: UpscaleOptions, model: LatentDiffusionModel) -> None:
        self.options, self.model = options, model
        self.made: dict[tuple[int, int], Generator] = {}
        self.of(*model_small(model))  # what does not fit is refused before anything is written

    def of(self, height: int, width: int) -> Generator:
        """For small pictures of this size; ValueError for a sampler, grid and path that do not fit each other."""
        if (height, width) not in self.made:
            options = self.options
            self.made[height, width] = sized_for(self.model, height, width).generator(
                sampler=build(options.sampler.function),
                steps=options.sampler.steps,
                grid=build(options.grid),
                guidance=Guidance(scale=options.guidance),
                seed=options.seed,
            )
        return self.made[height, width]


def drawn(
    options: UpscaleOptions, generators: Generators, views: tuple[Pictures, Tensor], share: range
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Of a share of the pictures, given with labels, each one's index, name, pixels as given uint8 [3, H, W], small
    copy, and its draws [D, 3, H', W']. A draw's noise belongs to its picture's index and its own."""
    pictures, labels = views
    factor = upscale_of(generators.model).factor
    waiting: list[tuple[int, str, Tensor, Tensor]] = []
    each = max(1, options.batch_size // options.draws)
    for index in track(share, "upscaling", hidden=share.start != 0):
        name, given = pictures[index]
        small = shrunk(given, min(given.shape[1:]) // factor) if options.shrink else _cut(given, name, generators.model)
        if waiting and (len(waiting) == each or waiting[0][3].shape != small.shape):
            yield from _batch(options, generators, waiting, labels)
            waiting = []
        waiting.append((index, name, given, small))
    if waiting:  # with fewer pictures than ranks, some have none
        yield from _batch(options, generators, waiting, labels)


def _cut(picture: Tensor, name: str, model: LatentDiffusionModel) -> Tensor:
    """The middle of a picture, with sides that the network takes."""
    m = multiple_for(model)
    height, width = (side // m * m for side in picture.shape[1:])
    if not height or not width:
        raise ValueError(f"images: {name} has fewer than {m} pixels a side: leave it out")
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    return picture[:, top : top + height, left : left + width]


def _batch(
    options: UpscaleOptions, generators: Generators, waiting: list[tuple[int, str, Tensor, Tensor]], labels: Tensor
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Pictures of the same size, drawn together."""
    small = torch.stack([each[3] for each in waiting])
    generator, numbers = generators.of(*small.shape[2:]), [each[0] for each in waiting]
    own = labels[numbers]
    parts = in_parts(numbers, options.draws, options.batch_size)
    made = [upscaled(generator, small[of], own[of], at, options.noise).cpu() for of, at in parts]
    of_each = torch.cat(made).unflatten(0, (len(waiting), options.draws))
    for (index, name, given, less), draws in zip(waiting, of_each, strict=True):
        yield index, name, given, less, draws
