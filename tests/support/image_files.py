"""Folders of procedural images."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, size=(40, 30), seed=0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
