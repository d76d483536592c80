"""One picture, or all below a folder, as an autoencoder takes them, whatever their classes."""

from pathlib import Path

from PIL import UnidentifiedImageError
from torch import Tensor

from ldm.data.decoding import open_image, read_regular, rgb
from ldm.data.listing import list_images
from ldm.data.sources import Folder
from ldm.runtime.wrong import first_line


class Pictures:
    """Pictures by their numbers: (name, uint8 [3, R, R]), resized and cropped in the centre.

    Args:
        place:      a file, or a folder as `ldm.data.sources.Folder` has it
        resolution: R, in pixels
        most:       how many at most; None = all

    Raises:
        ValueError: naming the key images, if there are none; of a picture, when it is asked for, if it is damaged.
    """

    def __init__(self, place: str, resolution: int, most: int | None = None) -> None:
        file = Path(place)
        self.root = file.parent if file.is_file() else file
        self.paths = [file] if file.is_file() else [path for path, _ in list_images(place, "images").images][:most]
        self.source = Folder(root=str(self.root), resolution=resolution)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        path = self.paths[index]
        try:
            image = rgb(open_image(read_regular(path), self.source.resolution), str(path))
        except Exception as error:  # Pillow's decoders raise what they meet
            told = "it is no jpg, png or webp" if isinstance(error, UnidentifiedImageError) else first_line(error)
            raise ValueError(f"images={path} can't be decoded ({told}): remove it, or name another") from None
        return path.relative_to(self.root).as_posix(), self.source.center_view(image)
