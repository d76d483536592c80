"""One picture, or all below a folder, as an autoencoder takes them, whatever their classes."""

import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm.data.decoding import center_view, open_image, read_regular, rgb
from ldm.data.listing import EXTENSIONS, list_images
from ldm.runtime.wrong import first_line

WHITE = 128  # from which on a mask hides


class Pictures:
    """Pictures by their numbers: (name, uint8 [3, R, R]), resized and cropped in the centre.

    Args:
        place:      a file, or a folder as `ldm.data.sources.Folder` has it
        resolution: R, in pixels
        resize:     their shorter side before the crop; None = R
        most:       how many at most; None = all
        whole:      whether they stay as they are, [3, H, W]
        key:        that names them, for errors

    Raises:
        ValueError: naming the key, if there are none; of a picture, when it is asked for, if it is damaged.
    """

    def __init__(
        self,
        place: str,
        resolution: int,
        resize: int | None = None,
        most: int | None = None,
        key: str = "images",
        whole: bool = False,
    ) -> None:
        file = Path(place)
        self.root = file.parent if file.is_file() else file
        self.paths = [file] if file.is_file() else [path for path, _ in list_images(place, key).images][:most]
        self.resolution, self.resize, self.key, self.whole = resolution, resize, key, whole

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        path = self.paths[index]
        try:
            view = whole_of(path) if self.whole else center_of(path, self.resolution, self.resize)
        except ValueError as error:
            raise ValueError(f"{self.key}={path} can't be decoded ({error}): remove it, or name another") from None
        return path.relative_to(self.root).as_posix(), view


def class_of(pictures: Pictures, index: int) -> str:
    """The name of a picture's folder below the pictures' own; ValueError where it lies in none."""
    first, *rest = pictures.paths[index].relative_to(pictures.root).parts
    if not rest:
        raise ValueError(f"{pictures.paths[index]} lies in no class's folder: pass classes=NAME, or classes=null")
    return first


class Masks:
    """What is hidden of pictures, by their numbers: bool [1, R, R].

    Args:
        pictures: of which
        mask:     a picture that is white where something is hidden, as large as each of them; or a folder of such, of
                  the same names, whatever their endings
        box:      top, left, height, width in pixels of the prepared picture, in place of it

    Raises:
        ValueError: for a box that is not inside; of a picture, when it is asked for, if there is no mask for it, or one
            of another size.
    """

    def __init__(self, pictures: Pictures, mask: str | None = None, box: list[int] | None = None) -> None:
        self.pictures, self.mask, self.box = pictures, mask, None
        if mask is not None and not Path(mask).exists():
            raise ValueError(f"mask={mask} does not exist: name a picture, or a folder of them")
        if box is not None:
            side, (top, left, height, width) = pictures.resolution, box
            if not (height and width and top + height <= side and left + width <= side):
                raise ValueError(f"box={box} must be [top,left,height,width] inside {side} x {side} pixels")
            self.box = torch.zeros(1, side, side, dtype=torch.bool)
            self.box[:, top : top + height, left : left + width] = True

    def __getitem__(self, index: int) -> Tensor:
        if self.box is not None:
            return self.box
        picture, file = self.pictures.paths[index], self._file(index)
        sizes = [_size(path) for path in (picture, file)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"mask={file} has {sizes[1][0]} x {sizes[1][1]} pixels, {picture} {sizes[0][0]} x {sizes[0][1]}"
            )
        hidden = center_of(file, self.pictures.resolution, self.pictures.resize)[:1] >= WHITE
        if not hidden.any():
            raise ValueError(f"mask={file} hides nothing: it is white where a picture is to be made anew")
        return hidden

    def _file(self, index: int) -> Path:
        place, picture = Path(str(self.mask)), self.pictures.paths[index]
        if place.is_file():
            return place
        stem = place / picture.relative_to(self.pictures.root).with_suffix("")
        beside = sorted(stem.parent.glob(f"{glob.escape(stem.name)}.*"))
        found = [path for path in beside if path.suffix[1:].lower() in EXTENSIONS]
        if not found:
            raise ValueError(f"mask={place} has no {stem.relative_to(place)}.png for {picture}")
        return found[0]


def _size(path: Path) -> tuple[int, int]:
    """Width and height, upright."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).size
    except Exception as error:  # Pillow's decoders raise what they meet
        raise ValueError(f"{path} can't be decoded ({first_line(error)}): name a jpg, png or webp") from None


def center_of(file: Path, resolution: int, resize: int | None = None) -> Tensor:
    """A picture's centre, uint8 [3, R, R], as a source of images prepares it: see `ldm.data.decoding.center_view`.

    Raises:
        ValueError: in a few words, if it is no picture, a damaged one or too large.
    """
    return center_view(_opened(file, resize or resolution), resolution, resize)


def whole_of(file: Path) -> Tensor:
    """A picture, uint8 [3, H, W]; ValueError likewise."""
    image = _opened(file, 1)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _opened(file: Path, short_side: int) -> Image.Image:
    try:
        return rgb(open_image(read_regular(file), short_side), str(file))
    except Exception as error:  # Pillow's decoders raise what they meet: EOFError, SyntaxError, struct.error, ...
        unknown = isinstance(error, UnidentifiedImageError)
        raise ValueError("it is no jpg, png or webp" if unknown else first_line(error)) from None
