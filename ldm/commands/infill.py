"""Make the hidden part of pictures anew: a PNG a draw, and a grid of pictures, masks and draws."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval, Len
from pydantic import model_validator
from torch import Tensor

from ldm.card import check_guidance, usual_guidance
from ldm.commands.options import Free, ResultOptions, SamplerOptions, Text, Weights, build
from ldm.data.picture_files import Masks, Pictures, class_of
from ldm.diffusion.guidance import Guidance
from ldm.evaluation.result_files import InfillFile, which_weights
from ldm.generate.generator import Generator
from ldm.generate.infilling import Method, infilled, method_for
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, grid, save_png
from ldm.runtime.arguments import Choice
from ldm.runtime.bars import track
from ldm.runtime.memory import check_batch
from ldm.runtime.ranges import Count, Natural, NonNegative
from ldm.runtime.ranks import pick_device, precision

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
    resample: Count
    grow: Annotated[int, Interval(ge=0, le=16)]
    sampler: SamplerOptions
    grid: Choice
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
    resize = (loaded.card["preprocessing"] or {}).get("resize")
    pictures = Pictures(options.images, model.resolution, resize, options.num)
    masks = Masks(pictures, mask=options.mask, box=options.box)
    labels = labels_of(options, model, loaded.card["label_dropout"], pictures)
    check_batch(options.batch_size, 3, *model.image_size)
    masks[0], pictures[0]
    generator = model.generator(
        sampler=build(options.sampler.function),
        steps=options.sampler.steps,
        grid=build(options.grid),
        guidance=Guidance(scale=scale),
        seed=options.seed,
    )
    options.begin(run)
    shown: list[Tensor] = []
    for index, name, image, hidden, draws in drawn(options, generator, pictures, masks, labels):
        for k, draw in enumerate(draws):
            save_png(run / "images" / f"{Path(name).with_suffix('').as_posix()}-{k}.png", draw)
        if index < SHOWN:
            shown += [image, torch.where(hidden, GREY, image).to(torch.uint8), *draws[:SHOWN]]
    columns = 2 + min(options.draws, SHOWN)
    titles = ["picture", "known", *(f"draw {k}" for k in range(columns - 2))]
    save_png(run / "grid.png", annotate(grid(torch.stack(shown), columns), columns=titles))
    InfillFile(
        model=loaded.fingerprint,
        autoencoder=autoencoder.fingerprint,
        weights=which_weights(options.weights),
        method=how,
        resample=options.resample if how == "repaint" else None,
        guidance=scale,
        seed=options.seed,
        pictures=len(pictures),
        draws=options.draws,
        precision=precision(model.device),
        **generator.sampling.describe(),
    ).write(run / "infill.json")
    print(f"{len(pictures)} pictures x {options.draws} draws in {run}: images/, grid.png, infill.json (method={how})")


def labels_of(options: InfillOptions, model: LatentDiffusionModel, dropout: float, pictures: Pictures) -> Tensor:
    """The label of each picture, [N]: the null class, one class for all, or that of its folder.

    Raises:
        ValueError: for a class that the model has not, or for none where it was never trained without labels.
    """
    if options.classes == "folders":
        named = [class_of(pictures, i) for i in range(len(pictures))]
        return torch.tensor(model.labels(named))
    if options.classes is not None:
        return torch.tensor(model.labels(options.classes) * len(pictures))
    if dropout == 0 and len(model.class_names) > 1:
        raise ValueError(f"model={options.model} was never trained without labels (label_dropout=0): pass classes=")
    return model.null.label.expand(len(pictures))


def drawn(
    options: InfillOptions, generator: Generator, pictures: Pictures, masks: Masks, labels: Tensor
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Each picture's index, name, pixels uint8 [3, H, W], hidden pixels [1, H, W], and its draws [D, 3, H, W]. A draw's
    noise belongs to its picture's index and its own."""
    each = max(1, options.batch_size // options.draws)
    how: dict[str, Any] = {"method": options.method, "resample": options.resample, "grow": options.grow}
    for start in track(range(0, len(pictures), each), "infilling", hidden=False):
        numbers = range(start, min(start + each, len(pictures)))
        names, views = zip(*(pictures[i] for i in numbers), strict=True)
        image, hidden = torch.stack(views), torch.stack([masks[i] for i in numbers])
        of = torch.arange(len(names)).repeat_interleave(options.draws)
        indices = [start * options.draws + k for k in range(len(of))]
        made = infilled(generator, image[of], hidden[of], labels[start:][of], indices, **how).cpu()
        for i, name in enumerate(names):
            yield start + i, name, image[i], hidden[i], made[of == i]
