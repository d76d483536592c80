"""The hidden part of images, made so that it fits what is known."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Condition
from ldm.conditioning.masked import Infill, hidden_cells, known_of
from ldm.diffusion.autoregressive import HIDDEN
from ldm.diffusion.objective import Denoise
from ldm.diffusion.parameterization import Prediction
from ldm.diffusion.path import Path
from ldm.diffusion.repaint import RESAMPLE, repaint
from ldm.diffusion.sampling import Sampler
from ldm.generate.generator import Generator
from ldm.generate.model import LatentDiffusionModel

Method = Literal["trained", "repaint", "codes"]


def method_for(model: LatentDiffusionModel, asked: Method | None) -> Method:
    """How a model infills: as it was trained to, or else by replacing what is known along the way; of codes, by drawing
    those that are hidden, given the others.

    Raises:
        ValueError: where it can't do what it is asked for.
    """
    if asked is not None and model.of_codes != (asked == "codes"):
        raise ValueError(f"method={asked}: the model makes {'codes' if model.of_codes else 'latents'}: leave it null")
    if model.of_codes:
        return "codes"
    trained = isinstance(model.conditioning, Infill)
    if asked == "trained" and not trained:
        raise ValueError("method=trained: the model was not trained to infill (condition=infill): pass method=repaint")
    return asked or ("trained" if trained else "repaint")


@torch.no_grad()
def infilled(
    generator: Generator,
    images: Tensor,
    hidden: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    *,
    method: Method | None = None,
    resample: int = RESAMPLE,
    grow: int = 0,
) -> Tensor:
    """Images, uint8 [B, 3, H, W], with their hidden pixels made anew; the known ones are the input's own.

    What is hidden is encoded as if what is known went on there (`continued`), so that nothing of it is seen and the
    cells at its edge are much like those of training, which saw the whole picture.

    Args:
        generator: how it is sampled
        images:    uint8 [B, 3, H, W], of the model's size
        hidden:    bool [B, 1, H, W], or of one row for all
        labels:    [B]; the null class says nothing
        indices:   of the samples, which determine their noise
        method:    see `method_for`
        resample:  of `repaint`
        grow:      cells around the hidden ones that are made anew, too: a decoder mixes neighbours
    """
    model, device = generator.model, generator.model.device
    how = method_for(model, method)
    images, hidden = images.to(device), hidden.to(device).expand(len(images), -1, -1, -1)
    autoencoder = model.autoencoder
    assert autoencoder is not None
    latent = model.encode(continued(images, hidden))
    cells = hidden_cells(hidden, autoencoder.downsample_factor, grow).to(latent.dtype)
    labels = labels.to(device)
    condition: Condition | Tensor = labels
    if how == "codes":
        function: Sampler = partial(generator.sampling.function, known=torch.where(cells > 0, HIDDEN, latent))
    elif how == "trained":
        condition, function = known_of(labels, latent, cells), pinned(generator.sampling.function, latent, cells)
    else:
        function = partial(repaint, known=latent, hidden=cells, resample=resample)
    walked = replace(generator, sampling=replace(generator.sampling, function=function))
    latents, _ = walked.latents(indices, condition)
    return torch.where(hidden, model.decode(cells * latents + (1 - cells) * latent), images)


def continued(images: Tensor, hidden: Tensor) -> Tensor:
    """Images, uint8 [B, 3, H, W], whose hidden pixels, bool [B, 1, H, W], are the mean of their nearest known ones,
    ring by ring from the edge inwards; of one without a known pixel, grey."""
    known = (~hidden).float()
    pixels = torch.where(hidden, 0.0, images.float())
    for _ in range(max(images.shape[2:])):
        if bool((known.flatten(1).amax(1) == known.flatten(1).amin(1)).all()):
            break
        near = 9 * F.avg_pool2d(known, 3, stride=1, padding=1)  # how many of the nine are known
        mean = 9 * F.avg_pool2d(pixels * known, 3, stride=1, padding=1) / near.clamp(min=1)
        reached = (near > 0.5) & (known == 0)
        pixels = torch.where(reached, mean, pixels)
        known = torch.where(reached, 1.0, known)
    return torch.where(known > 0, pixels, 127.5).round().to(torch.uint8)


def pinned(sampler: Sampler, known: Tensor, hidden: Tensor) -> Sampler:
    """A sampler whose denoiser says what is known, where that is so: the network's own answer counted nowhere there in
    training, and the state that it sees is to be the known latent, as noisy as the path has it."""

    @wraps(sampler)  # by its signature it is seen whether it draws noise
    def walk(denoise: Denoise, path: Path, x: Tensor, times: Tensor, **options: Any) -> Tensor:
        def said(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Prediction:
            prediction, c = denoise(x_t, t) if s is None else denoise(x_t, t, s), path(t)
            eps = (x_t - c.alpha * known) / c.sigma.clamp(min=1e-6)
            return Prediction(
                torch.where(hidden > 0, prediction.x0, known), torch.where(hidden > 0, prediction.eps, eps)
            )

        return sampler(said, path, x, times, **options)

    return walk
