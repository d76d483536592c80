"""Uploaded files to images as a model sees them."""

from pathlib import Path

from torch import Tensor

from ldm.data.decoding import center_view, open_image, read_regular, rgb


def view_of(file: Path, name: str, resolution: int, resize: int | None) -> Tensor:
    """The centre of a picture, uint8 [3, R, R], as the images were prepared that the model was trained on.

    Args:
        file: where it lies.
        name: what its owner calls it.
        resolution, resize: of the square, and of the short side before the crop, in pixels; None = resolution.

    Raises:
        ValueError: in one line, if it is no picture, a damaged one or too large.
    """
    try:
        image = rgb(open_image(read_regular(file), resize or resolution), name)
    except Exception as error:  # Pillow's decoders raise what they meet: EOFError, SyntaxError, struct.error, ...
        told = " ".join(str(error).split()) or type(error).__name__
        told = "it is no jpg, png or webp" if told.startswith("cannot identify") else told
        raise ValueError(f"{name} cannot be read as a picture: {told}") from None
    return center_view(image, resolution, resize)
