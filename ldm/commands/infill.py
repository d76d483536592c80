"""Make the hidden part of pictures anew: a PNG a draw, and a grid of pictures, masks and draws."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval, Len
from pydantic import model_validator
from torch import Tensor

from ldm.card import check_guidance, usual_guidance
from ldm.commands.draws import begun, check_names, in_parts, labels_of, save_draws
from ldm.commands.options import Free, GridChoice, ResultOptions, SamplerOptions, Text, Weights, build
from ldm.data.picture_files import Masks, Pictures
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.repaint import RESAMPLE, repaint
from ldm.evaluation.result_files import InfillFile, which_weights
from ldm.generate.generator import Generator
from ldm.generate.infilling import Method, infilled, method_for
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, grid, save_png
from ldm.runtime.bars import track
from ldm.runtime.memory import check_batch
from ldm.runtime.ranges import Count, Natural, NonNegative
from ldm.runtime.ranks import gather, pick_device, precision

SHOWN = 8  # pictures in grid.png
GREY = 128  # of what is hidden, in pictures of masks


class InfillOptions(ResultOptions):
    """conf/infill.yaml, which says what each key means."""

    model: Text
    autoencoder: Text | None
    images: Text
    mask: Text | None
    box: Annotated[list[Natural], Len(4, 4)] | None
    classes: str | int | None
    draws: Annotated[int, Interval(ge=1, le=64)]
    method: Method | None
    resample: Count | None
    grow: Annotated[int, Interval(ge=0, le=16)]
    sampler: SamplerOptions
    grid: GridChoice
    weights: Weights
    guidance: NonNegative | None
    num: Count | None
    batch_size: Annotated[Count, Free()]
    device: Annotated[str, Free()]

    @model_validator(mode="after")
    def _one_mask(self) -> Self:
        if (self.mask is None) == (self.box is None):
            raise ValueError("say what is hidden: by mask=FILE or FOLDER, or by box=[top,left,height,width]")
        return self


def main(options: InfillOptions, run: Path) -> None:
    loaded, autoencoder = load_stages(options.model, options.weights, options.autoencoder, options.trust)
    scale = usual_guidance(loaded.card) if options.guidance is None else options.guidance
    check_guidance(loaded.card, scale, weak=False)
    model = LatentDiffusionModel.of(loaded, autoencoder, pick_device(options.device))
    how = method_for(model, options.method)
    check_method(options, how)
    resize = (loaded.card["preprocessing"] or {}).get("resize")
    pictures = Pictures(options.images, model.resolution, resize, options.num)
    masks = Masks(pictures, mask=options.mask, box=options.box)
    labels = labels_of(options, model, loaded.card["label_dropout"], pictures)
    check_batch(options.batch_size, 3, *model.image_size)
    check_pictures(pictures, masks)
    generator = model.generator(
        sampler=build(options.sampler.function),
        steps=options.sampler.steps,
        grid=build(options.grid),
        guidance=Guidance(scale=scale),
        seed=options.seed,
    )
    share, own = begun(options, run, pictures), {}
    for index, name, image, hidden, draws in drawn(options, generator, (pictures, masks, labels), share):
        save_draws(run, name, draws)
        if index < SHOWN:
            own[index] = [image, torch.where(hidden, GREY, image).to(torch.uint8), *draws[:SHOWN]]
    shares = gather(own)
    if not shares:  # on every rank but the first
        return
    rows = {index: row for part in shares for index, row in part.items()}
    shown = [image for index in sorted(rows) for image in rows[index]]
    columns = 2 + min(options.draws, SHOWN)
    titles = ["picture", "known", *(f"draw {k}" for k in range(columns - 2))]
    save_png(run / "grid.png", annotate(grid(torch.stack(shown), columns), columns=titles))
    InfillFile(
        model=loaded.fingerprint,
        autoencoder=autoencoder.fingerprint,
        weights=which_weights(options.weights),
        method=how,
        resample=(options.resample or RESAMPLE) if how == "repaint" else None,
        guidance=scale,
        seed=options.seed,
        pictures=len(pictures),
        draws=options.draws,
        precision=precision(model.device),
        **stamped(generator, how),
    ).write(run / "infill.json")
    print(f"{len(pictures)} pictures x {options.draws} draws in {run}: images/, grid.png, infill.json (method={how})")


def check_method(options: InfillOptions, how: Method) -> None:
    """ValueError for what the method does not take."""
    if how == "repaint" and options.sampler.function is not None:
        raise ValueError("method=repaint walks by steps of its own: leave sampler= out (sampler.steps= is taken)")
    if how != "repaint" and options.resample is not None:
        raise ValueError(f"resample={options.resample} is of method=repaint: leave it null")


def check_pictures(pictures: Pictures, masks: Masks) -> None:
    """Decode all of them, before anything is written; see `check_names`, too."""
    check_names(pictures)
    for i in range(len(pictures)):
        _ = pictures[i], masks[i]


def stamped(generator: Generator, how: Method) -> dict[str, Any]:
    """What walked, for the stamp."""
    said = generator.sampling.describe()
    if how == "repaint":
        said["sampler"]["function"] = {"_target_": f"{repaint.__module__}.{repaint.__qualname__}"}
    return said


def drawn(
    options: InfillOptions, generator: Generator, given: tuple[Pictures, Masks, Tensor], share: range
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Of a share of the pictures, given with masks and labels, each one's index, name, pixels uint8 [3, H, W], hidden
    pixels [1, H, W], and its draws [D, 3, H, W]. A draw's noise belongs to its picture's index and its own."""
    pictures, masks, labels = given
    each = max(1, options.batch_size // options.draws)
    how: dict[str, Any] = {"method": options.method, "resample": options.resample or RESAMPLE, "grow": options.grow}
    for start in track(range(0, len(share), each), "infilling", hidden=share.start != 0):
        numbers = list(share[start : start + each])
        names, views = zip(*(pictures[i] for i in numbers), strict=True)
        image, hidden = torch.stack(views), torch.stack([masks[i] for i in numbers])
        own = labels[numbers]
        parts = in_parts(numbers, options.draws, options.batch_size)
        made = [infilled(generator, image[of], hidden[of], own[of], at, **how).cpu() for of, at in parts]
        draws = torch.cat(made).unflatten(0, (len(numbers), options.draws))
        for i, (number, name) in enumerate(zip(numbers, names, strict=True)):
            yield number, name, image[i], hidden[i], draws[i]
