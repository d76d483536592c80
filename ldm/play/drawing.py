"""What the page's buttons make: pictures, each with a line that says what it took."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.generate.autoencoding import AutoencoderModel
from ldm.generate.interpolation import interpolate
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, class_rows, grid, strip
from ldm.play.studio import Plan

AMPLIFIED = 4  # factor on the difference of an image and its reconstruction, which is hard to see otherwise


@dataclass(frozen=True)
class Picture:
    """uint8 [3, H, W], and what is said of it."""

    pixels: Tensor
    said: str


def samples(plan: Plan) -> Picture:
    """The grid of all samples, a class a row."""
    begun = time.perf_counter()
    images, evaluations = drawn(plan)
    seconds = time.perf_counter() - begun
    count = len(images)
    shown, columns, names = class_rows(images, plan.rows, plan.names)
    of_them = "" if len(shown) == count else f", {len(shown)} of them shown"
    each = f"{evaluations:g} evaluations each" + (" (guided: two networks in each)" if _guided(plan) else "")
    said = f"{count} sample{'s' * (count > 1)} in {seconds:.1f} s{of_them}; {each}"
    return Picture(annotate(grid(shown, columns), rows=names), said)


def drawn(plan: Plan) -> tuple[Tensor, float]:
    """The samples, uint8 [N, 3, H, W], and the evaluations of the denoiser for each, on average."""
    images, evaluations = [], 0
    num = len(plan.rows)
    for start in range(0, num, plan.batch_size):
        part = range(start, min(start + plan.batch_size, num))
        batch, count = plan.generator.images(part, plan.told.turn(part).to(plan.generator.model.device))
        images.append(batch.cpu())
        evaluations += count * len(part)
    return torch.cat(images), evaluations / num


def _guided(plan: Plan) -> bool:
    return plan.generator.guidance.scale != 1


def trajectory(plan: Plan) -> Picture:
    """The way of the first sample from noise."""
    states, times = plan.generator.trajectory(plan.told.rows([0]).to(plan.generator.model.device))
    name = plan.names[plan.rows[0]]
    return Picture(strip(states, times), f"The first sample ({name}) on its way from noise")


def between(plan: Plan, last_seed: int, last_class: str, frames: int) -> Picture:
    """The way from the plan's first sample to that of another seed and class."""
    generator, begun = plan.generator, time.perf_counter()
    first, model = plan.told.rows([0]), generator.model
    last = first._replace(label=model.in_turn(last_class, 1)) if model.conditioning.labels else first
    same = torch.equal(first.label.cpu(), last.label.cpu())
    images = interpolate(generator, (generator.seed, last_seed), (first, first if same else last), frames)
    said = f"{frames} images in {time.perf_counter() - begun:.1f} s"
    columns = min(frames, math.ceil(math.sqrt(frames)) if frames > 10 else frames)
    return Picture(grid(images, columns), said)


def reconstruction(model: LatentDiffusionModel | AutoencoderModel, image: Tensor) -> Picture:
    """An image uint8 [3, R, R] beside what the autoencoder makes of it, and their difference."""
    from ldm.metrics.reconstruction import psnr  # which takes a second to import

    begun = time.perf_counter()
    latent = model.encode(image[None])
    image_hat = model.decode(latent)
    seconds = time.perf_counter() - begun
    ratio = float(psnr(image_hat, image[None].to(image_hat.device)))
    difference = (AMPLIFIED * (image_hat[0].cpu().int() - image.int()).abs()).clamp(max=255).to(torch.uint8)
    titles = ["image", "reconstruction", f"{AMPLIFIED} x difference"]
    picture = annotate(grid(torch.stack([image, image_hat[0].cpu(), difference]), 3), columns=titles)
    fewer = f"{_shape(image)} numbers as {_shape(latent[0])}, {image.numel() / latent.numel():g} times fewer"
    return Picture(picture, f"PSNR {ratio:.2f} dB; {fewer}; {seconds:.2f} s")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
