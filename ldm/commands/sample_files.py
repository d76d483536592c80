"""What `ldm sample` is asked for, and the files and pictures that it makes of samples."""

import io
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.conditioning.text import needs_caption
from ldm.generate.generator import Generator
from ldm.generate.interpolation import interpolate
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, grid, save_png
from ldm.runtime.files import TEMPORARY, atomic_write
from ldm.runtime.wrong import first_line

if TYPE_CHECKING:
    from ldm.commands.sample import SampleOptions


class Wanted(NamedTuple):
    """What samples are told, and how they are shown.

    told:    in turn
    rows:    by which of the names each is shown
    names:   classes, or prompts
    prompts: in turn; None: there are none
    """

    told: Condition
    rows: list[int]
    names: list[str]
    prompts: list[str] | None

    def of_row(self, row: int) -> Condition:
        """What the first sample of a row is told."""
        return self.told.turn([self.rows.index(row)])


def wanted_of(options: "SampleOptions", card: dict[str, Any], model: LatentDiffusionModel) -> Wanted:
    """What the samples are told: prompts, or else classes, in turn.

    Raises:
        ValueError: if there are no prompts for a model that was always told a caption in training.
    """
    if options.prompts is not None:
        texts = prompts_of(options.prompts)
        return Wanted(
            model.asked(options.classes, options.num, texts), [i % len(texts) for i in range(options.num)], texts, texts
        )
    if needs_caption(model.conditioning, card["label_dropout"]):
        raise ValueError(f"model={options.model} was never trained without a caption (label_dropout=0): pass prompts=")
    told = model.asked(options.classes, options.num)
    return Wanted(told, told.turn(range(options.num)).label.tolist(), [*model.class_names, "no label"], None)


def prompts_of(given: str | list[str]) -> list[str]:
    """Texts: as they are given, or the lines of a file that ends in .txt.

    Raises:
        ValueError: if there is no such file, or nothing in it.
    """
    if isinstance(given, list) or not given.endswith(".txt"):
        return [given] if isinstance(given, str) else given
    try:
        lines = Path(given).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompts={given} can't be read ({first_line(error)}): name a file of a prompt a line"
        ) from None
    if not any(lines):
        raise ValueError(f"prompts={given} is empty: write a prompt a line")
    return lines


def strips(generator: Generator, wanted: Wanted, frames: int) -> Tensor:
    """A picture of ways between samples: a row from this seed's noise to the next's, of the first class or prompt, and
    a row from each to the next at this seed's noise, up to nine."""
    seed, rows = generator.seed, list(dict.fromkeys(wanted.rows))[:10]
    first, names = wanted.of_row(rows[0]), wanted.names
    ways = [((seed, seed + 1), (first, first), f"seed {seed}\nto {seed + 1}")]
    for a, b in pairwise(rows):
        ways.append(((seed, seed), (wanted.of_row(a), wanted.of_row(b)), f"{names[a]}\nto {names[b]}"))
    made = [interpolate(generator, seeds, told, frames).cpu() for seeds, told, _ in ways]
    return annotate(grid(torch.cat(made), frames), rows=[name for *_, name in ways])


def save_files(folder: Path, samples: Tensor, labels: list[int], names: Sequence[str]) -> None:
    """Write images, uint8 [N, 3, H, W], as PNGs in a folder a class, in place of an earlier call's."""
    new = folder.with_name(f".{folder.name}{TEMPORARY}")
    shutil.rmtree(new, ignore_errors=True)
    places = folder_names(names)
    for i, (image, label) in enumerate(zip(samples, labels, strict=True)):
        save_png(new / places[label] / f"{i:06d}.png", image)
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder's name for each class: its own, but for what no folder can be called; of equal ones, with its number."""
    plain = [re.sub(r"[^\w .,()+-]", "_", name).strip(". ")[:100] or "_" for name in names]
    plain = [name.encode()[:200].decode(errors="ignore") for name in plain]  # systems count bytes
    again = Counter(name.lower() for name in plain)  # some file systems know no upper case
    return [f"{name}-{i}" if again[name.lower()] > 1 else name for i, name in enumerate(plain)]


def save_samples(file: Path, samples: Tensor, labels: Tensor) -> None:
    """The .npz that the field's evaluators read: arr_0, uint8 [N, H, W, 3], and arr_1, labels [N]."""
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=samples.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    with atomic_write(file) as stream:
        stream.write(buffer.getvalue())
