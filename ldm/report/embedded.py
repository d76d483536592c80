"""Pictures inside a page: as data URIs, small enough to be sent."""

import base64
import io
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image

AS_IT_IS = 300_000  # bytes of a PNG that is taken as it is
MANY = 1_000_000  # pixels above which a lossless form takes seconds
SIDES, QUALITY = (1600, 1000, 560), 82  # of one that no lossless form makes small enough


class Embedded(NamedTuple):
    """A picture in a page. uri: data:image/...; its size is in pixels."""

    uri: str
    width: int
    height: int


def embedded(path: Path) -> Embedded:
    """A picture file, decoded once to see that it is one; ValueError if it is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = path.read_bytes()
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                image = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is damaged or no picture ({error})") from None
    if len(content) <= AS_IT_IS:
        return Embedded(_uri(content, "png"), *image.size)
    if image.width * image.height <= MANY and len(lossless := _webp(image, lossless=True)) <= AS_IT_IS:
        return Embedded(_uri(lossless, "webp"), *image.size)
    for side in SIDES:
        image.thumbnail((side, side))
        lossy = _webp(image, lossless=False)
        if len(lossy) <= AS_IT_IS:
            break
    return Embedded(_uri(lossy, "webp"), *image.size)


def _webp(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=lossless, quality=QUALITY, method=2)
    return buffer.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
