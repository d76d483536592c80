"""One picture, or all below a folder, as an autoencoder takes them, whatever their classes."""

from pathlib import Path

from PIL import UnidentifiedImageError
from torch import Tensor

from ldm.data.decoding import center_view, open_image, read_regular, rgb
from ldm.data.listing import list_images
from ldm.runtime.wrong import first_line


class Pictures:
    """Pictures by their numbers: (name, uint8 [3, R, R]), resized and cropped in the centre.

    Args:
        place:      a file, or a folder as `ldm.data.sources.Folder` has it
        resolution: R, in pixels
        resize:     their shorter side before the crop; None = R
        most:       how many at most; None = all

    Raises:
        ValueError: naming the key images, if there are none; of a picture, when it is asked for, if it is damaged.
    """

    def __init__(self, place: str, resolution: int, resize: int | None = None, most: int | None = None) -> None:
        file = Path(place)
        self.root = file.parent if file.is_file() else file
        self.paths = [file] if file.is_file() else [path for path, _ in list_images(place, "images").images][:most]
        self.resolution, self.resize = resolution, resize

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        path = self.paths[index]
        try:
            view = center_of(path, self.resolution, self.resize)
        except ValueError as error:
            raise ValueError(f"images={path} can't be decoded ({error}): remove it, or name another") from None
        return path.relative_to(self.root).as_posix(), view


def center_of(file: Path, resolution: int, resize: int | None = None) -> Tensor:
    """A picture's centre, uint8 [3, R, R], as a source of images prepares it: see `ldm.data.decoding.center_view`.

    Raises:
        ValueError: in a few words, if it is no picture, a damaged one or too large.
    """
    try:
        image = rgb(open_image(read_regular(file), resize or resolution), str(file))
    except Exception as error:  # Pillow's decoders raise what they meet: EOFError, SyntaxError, struct.error, ...
        unknown = isinstance(error, UnidentifiedImageError)
        raise ValueError("it is no jpg, png or webp" if unknown else first_line(error)) from None
    return center_view(image, resolution, resize)
