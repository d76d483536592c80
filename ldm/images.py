"""Between images (uint8, [B, 3, H, W]) and x (float in [-1, 1]), and pictures of several images."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.runtime.files import atomic_write


def to_x(image: Tensor) -> Tensor:
    """uint8 image -> x in [-1, 1], in torch's default type: float32, or float64 under trainer.precision=64-true."""
    return image.to(torch.get_default_dtype()) / 127.5 - 1.0


def to_image(x: Tensor) -> Tensor:
    """x -> uint8 image, clamped and rounded."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, columns: int, min_side: int = 480) -> Tensor:
    """uint8 [N, 3, H, W] -> uint8 [3, H', W'], images enlarged by a whole factor to make the grid min_side wide."""
    from torchvision.utils import make_grid  # half of a second that only pictures should cost

    factor = -(-min_side // (columns * images.shape[-1]))  # rounded up
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(enlarged, nrow=columns, padding=2)


def save_png(path: Path, image: Tensor) -> None:
    """Write a uint8 [3, H, W] image atomically."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
