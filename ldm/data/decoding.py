"""Files of pictures to pixels: regular files alone, by the named decoders, and of a bounded size."""

import io
import logging
import os
import stat
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

log = logging.getLogger(__name__)

DECODERS = ("JPEG", "PNG", "WEBP")  # Pillow's others are more than pictures: EPS starts a PostScript interpreter
MOST_BYTES = 2**28  # of a picture's file
MOST_PIXELS = 2**27  # of a picture, before it is decoded and after it is resized: 134 million


def read_regular(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: if it can't be read, or is a pipe, a device or the like, which might never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would block
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is no regular file")
        if (size := os.fstat(handle).st_size) > MOST_BYTES:
            raise OSError(f"it has {size:,} bytes, more than a picture can have")
        return file.read()


def open_image(data: bytes, short_side: int) -> Image.Image:
    """A picture, not decoded yet.

    Args:
        data:       of a jpg, png or webp file
        short_side: to which it will be resized, in pixels

    Raises:
        ValueError: if it has too many pixels, or will have once it is resized.
        OSError: if it is none of these.
    """
    image = Image.open(io.BytesIO(data), formats=DECODERS)
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}")
    scale = short_side / min(width, height)
    if width * height * scale * scale > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels are too oblong for a short side of {short_side}")
    return image


def rgb(image: Image.Image, name: str) -> Image.Image:
    """Upright by its EXIF, in RGB: what is transparent is laid on white, of 16 bits the upper 8 are kept."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 8 bits
        values = np.asarray(upright).astype(np.int64)
        if 255 < values.max() < 4096:
            _warn_once(name)
        upright = Image.fromarray((values // 257).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    return upright.convert("RGB")


def center_view(image: Image.Image, resolution: int, resize: int | None) -> Tensor:
    """[3, R, R] uint8: the short side resized to `resize` (None = R), then cropped in the centre."""
    resized = resize_short_side(image, resolution, resize)
    return cut_square(resized, (resized.width - resolution) // 2, (resized.height - resolution) // 2, resolution)


def resize_short_side(image: Image.Image, resolution: int, resize: int | None) -> Image.Image:
    """The image with a short side of `resize` pixels (None = resolution), none of them below the resolution."""
    scale = (resize or resolution) / min(image.size)
    size = (max(resolution, round(image.width * scale)), max(resolution, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def cut_square(image: Image.Image, left: int, top: int, resolution: int) -> Tensor:
    """[3, R, R] uint8, from there on."""
    box = (left, top, left + resolution, top + resolution)
    return torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1).contiguous()


@cache
def _warned() -> list[str]:
    return []


def _warn_once(name: str) -> None:
    """Once in a process: a picture may be dark, many are not."""
    if not _warned():
        _warned().append(name)
        log.warning("%s has 16 bits a pixel, of which the upper 4 are empty: data of 12 bits come out near black", name)
