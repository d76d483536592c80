"""What the commands share that make several draws of each of some pictures."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ldm.commands.options import ResultOptions
from ldm.conditioning.text import needs_caption
from ldm.data.picture_files import Pictures, class_of
from ldm.generate.model import LatentDiffusionModel
from ldm.images import save_png
from ldm.runtime.ranks import join_ranks

IMAGES = "images"  # the folder of draws


def check_names(pictures: Pictures) -> None:
    """ValueError where two pictures' results would get the same name."""
    names: dict[str, str] = {}
    for path in pictures.paths:
        name = path.relative_to(pictures.root).as_posix()
        stem = Path(name).with_suffix("").as_posix()
        if stem in names:
            raise ValueError(f"images: {names[stem]} and {name} differ in their endings alone: rename one")
        names[stem] = name


class Labelled(Protocol):
    """The options that say a picture's label."""

    model: str
    classes: str | int | None


def labels_of(options: Labelled, model: LatentDiffusionModel, dropout: float, pictures: Pictures) -> Tensor:
    """The label of each picture, [N]: the null class, one class for all, or that of its folder.

    Raises:
        ValueError: for a class that the model has not, or for none where it was never trained without labels.
    """
    if options.classes is not None and not model.conditioning.labels:
        raise ValueError(f"classes={options.classes}: model={options.model} was told no labels: leave it out")
    if options.classes == "folders":
        named = [class_of(pictures, i) for i in range(len(pictures))]
        return torch.tensor(model.labels(named))
    if options.classes is not None:
        return torch.tensor(model.labels(options.classes) * len(pictures))
    if needs_caption(model.conditioning, dropout):
        raise ValueError(
            f"model={options.model} was never trained without a caption (label_dropout=0), and is told none here: "
            "choose another"
        )
    if model.conditioning.labels and model.conditioning.unlabelled_share(dropout) == 0 and len(model.class_names) > 1:
        raise ValueError(f"model={options.model} was never trained without labels: pass classes=")
    return model.null.label.expand(len(pictures))


def begun(options: ResultOptions, run: Path, pictures: Pictures) -> range:
    """The numbers of this rank's share of the pictures, for whose draws the run folder is made ready."""
    options.keep_others(run)  # on all ranks: none waits for one that was refused
    rank, world = join_ranks()
    if rank == 0:
        options.begin(run)
        shutil.rmtree(run / IMAGES, ignore_errors=True)  # of an earlier call
    if world > 1:
        dist.barrier()  # before any of them writes
    return range(rank, len(pictures), world)


def save_draws(run: Path, name: str, draws: Tensor) -> None:
    """Write the draws of a picture of this name, uint8 [D, 3, H, W]: a PNG each."""
    for k, draw in enumerate(draws):
        save_png(run / IMAGES / f"{Path(name).with_suffix('').as_posix()}-{k}.png", draw)


def in_parts(numbers: Sequence[int], draws: int, batch_size: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows among some pictures, and the samples' indices, of all draws of each in order, so many at once. A draw's
    noise belongs to its picture's number and its own."""
    of = [(row, number * draws + k) for row, number in enumerate(numbers) for k in range(draws)]
    for start in range(0, len(of), batch_size):
        rows, indices = zip(*of[start : start + batch_size], strict=True)
        yield torch.tensor(rows), list(indices)
