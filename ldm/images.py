"""Between images (uint8, [B, 3, H, W]) and x (float in [-1, 1]), and pictures of several images."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.runtime.files import atomic_write

INK, PAPER = (64, 64, 64), (255, 255, 255)
GAP = 2  # pixels between the images of a grid


def to_x(image: Tensor) -> Tensor:
    """uint8 image -> x in [-1, 1], in torch's default type: float32, or float64 under trainer.precision=64-true."""
    return image.to(torch.get_default_dtype()) / 127.5 - 1.0


def x_of(images: Tensor, device: torch.device) -> Tensor:
    """Images, uint8 [B, 3, H, W], on a device, as the autoencoder takes them; ValueError for what are none."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [B, 3, H, W], not {images.dtype} {list(images.shape)}")
    return to_x(images.to(device))


def to_image(x: Tensor) -> Tensor:
    """x -> uint8 image, clamped and rounded.

    Raises:
        ValueError: if it is not finite, of which clamping would make black or white.
    """
    if not x.isfinite().all():
        raise ValueError("the model makes values that are not finite: its training went wrong; use an older checkpoint")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def shrunk(images: Tensor, side: int) -> Tensor:
    """uint8 [..., 3, H, W] -> uint8, its shorter side of `side` pixels, each the mean of a bicubic window (as Pillow
    resizes)."""
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    size = round(height * scale), round(width * scale)
    return _bicubic(images, size, antialias=True)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """uint8 [..., 3, H, W] -> uint8 [..., 3, factor H, factor W], bicubic."""
    return _bicubic(images, (factor * images.shape[-2], factor * images.shape[-1]), antialias=False)


def _bicubic(images: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    flat = images.reshape(-1, *images.shape[-3:]).float()
    resized = F.interpolate(flat, size, mode="bicubic", antialias=antialias).clamp(0, 255).round()
    return resized.to(torch.uint8).reshape(*images.shape[:-2], *size)


def grid(images: Tensor, columns: int, min_side: int = 480) -> Tensor:
    """uint8 [N, 3, H, W] -> uint8 [3, H', W'] on white, images enlarged by a whole factor until the longer side has
    at least min_side pixels."""
    from torchvision.utils import make_grid  # half of a second that only pictures should cost

    count, _, height, width = images.shape
    longer = max(columns * width, -(-count // columns) * height)
    factor = -(-min_side // longer)  # rounded up
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(enlarged, nrow=columns, padding=GAP, pad_value=255)


def annotate(
    picture: Tensor, rows: Sequence[str] = (), columns: Sequence[str] = (), key: "Key | None" = None
) -> Tensor:
    """Write beside a grid what its rows are, above it what its columns are, and below it what its colours mean.

    Args:
        picture : uint8 [3, H, W], of `grid`
        rows    : a name a row, from the top; cut where it is long; none = no margin
        columns : a name a column, from the left; none = no margin
        key     : of colours; None = none

    Returns:
        uint8 [3, H', W'], the picture with margins.
    """
    _, height, width = picture.shape
    cell = min(height / max(len(rows), 1), width / max(len(columns), 1))
    # legible in the picture as a whole, and within a row
    font = _font(round(max(8, min(max(width, height) / 45, cell / 2, 26))))
    line = round(1.5 * font.size)
    names = ["\n".join(_shortened(part, font, 10 * font.size) for part in name.splitlines()) for name in rows]
    longest = max((font.getlength(part) for name in names for part in name.splitlines()), default=0)
    left = round(longest + 0.6 * font.size) if names else 0
    top, bottom = line if columns else 0, 2 * line if key is not None else 0
    room = 0 if key is None else round(font.getlength(key.low + key.high) + 13 * font.size)  # as `_draw_key` takes it
    canvas = Image.new("RGB", (max(left + width, room), top + height + bottom), PAPER)
    canvas.paste(Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()), (left, top))
    draw = ImageDraw.Draw(canvas)
    for i, name in enumerate(names):
        middle = top + GAP / 2 + (height - GAP) * (i + 0.5) / len(rows)
        draw.text((left - 0.3 * font.size, middle), name, INK, font, anchor="rm", align="right")
    for i, name in enumerate(columns):
        middle = left + GAP / 2 + (width - GAP) * (i + 0.5) / len(columns)
        draw.text((middle, top / 2), _shortened(name, font, width / len(columns)), INK, font, anchor="mm")
    if key is not None:
        _draw_key(canvas, font, key, top + height + bottom // 2)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


@dataclass(frozen=True)
class Key:
    """What a ramp of colours means.

    Args:
        colors    : uint8 [3, N], from one end to the other
        low, high : the words at its ends
    """

    colors: Tensor
    low: str
    high: str


def _draw_key(canvas: Image.Image, font: ImageFont.FreeTypeFont, key: Key, middle: int) -> None:
    draw = ImageDraw.Draw(canvas)
    gap, (width, height) = round(0.6 * font.size), (round(10 * font.size), round(0.8 * font.size))
    ramp = Image.fromarray(key.colors.T[None].cpu().numpy()).resize((width, height))
    start = gap + round(font.getlength(key.low)) + gap
    draw.text((gap, middle), key.low, INK, font, anchor="lm")
    canvas.paste(ramp, (start, middle - height // 2))
    draw.text((start + width + gap, middle), key.high, INK, font, anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own knows no letters beyond ASCII."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its beginning as fits the width in pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}\u2026") > width:
        text = text[:-1]
    return f"{text.rstrip(' ,')}\u2026"


def class_rows(
    samples: Tensor, labels: Sequence[int], names: Sequence[str], most: int = 10
) -> tuple[Tensor, int, list[str]]:
    """Samples for a grid, its number of columns, and the names of its rows.

    A row is a class, for up to `most` classes that have at least two samples each. Where they are one class, or too few
    for that, the rows are as the samples come: of one class they need no name, else one goes from class to class.

    Args:
        samples : uint8 [N, 3, H, W]
        labels  : class indices, N
        names   : of all classes
    """
    members: dict[int, list[int]] = defaultdict(list)  # of each class, in the order of their first samples
    for i, label in enumerate(labels):
        members[label].append(i)
    columns = min(most, min(map(len, members.values())))
    if len(members) > 1 and columns > 1:
        rows = list(members.values())[:most]
        return samples[[i for row in rows for i in row[:columns]]], columns, [names[c] for c in list(members)[:most]]
    columns = min(most, len(samples))
    count = min(most, len(samples) // columns)
    ends = [(labels[row * columns], labels[(row + 1) * columns - 1]) for row in range(count)]
    said = [f"{names[first]}\nto {names[last]}" for first, last in ends] if len(members) > 1 else []
    return samples[: count * columns], columns, said


def strip(states: Tensor, times: Sequence[float]) -> Tensor:
    """The picture of a trajectory: what a sampler walked through, and below it what the network took it for.

    Args:
        states : K states x_t, then the x0 predicted at each, uint8 [2 K, 3, H, W]
        times  : of the states, K
    """
    titles = [f"{t:.2f}" if t == 0 or t >= 0.01 else f"{t:.0e}" for t in times]
    titles[0] = f"t = {titles[0]}"
    return annotate(grid(states, len(times)), rows=["x_t", "predicted x0"], columns=titles)


def save_png(path: Path, image: Tensor) -> None:
    """Write a uint8 [3, H, W] image atomically."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
