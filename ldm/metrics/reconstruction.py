"""PSNR, SSIM, LPIPS and rFD of reconstructions, on rounded uint8 images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image import StructuralSimilarityIndexMeasure

from ldm.images import to_x
from ldm.metrics.features import Extractor
from ldm.metrics.frechet import frechet_distance
from ldm.metrics.statistics import Moments


def psnr(image_hat: Tensor, image: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each image, in dB: uint8 [B, 3, H, W] twice -> [B].

    An image that is reconstructed exactly has the PSNR of one value in it that is off by one, not infinitely many dB:
    else one blank image would decide a mean.
    """
    pair = image_hat.float(), image.float()
    values = peak_signal_noise_ratio(*pair, data_range=255.0, dim=(1, 2, 3), reduction="none")
    return values.clamp(max=10 * math.log10(255.0**2 * image[0].numel()))


class ReconstructionMetrics:
    """update(image_hat, image) with uint8 images, compute() -> {"psnr": dB, "ssim", "lpips", "rfd"}: means over images,
    and the Frechet distance between both sets; over all ranks of a run.

    Args:
        perceptual: LPIPS of two batches in [-1, 1], [B]; None = left out
        features:   what rFD is measured with, see `ldm.metrics.features`; None = left out
    """

    def __init__(self, perceptual: Callable[[Tensor, Tensor], Tensor] | None, features: Extractor | None) -> None:
        self.perceptual, self.features = perceptual, features
        self.means: dict[str, Metric] = {
            # torchmetrics' PeakSignalNoiseRatio keeps lists of images, which fail where a rank has none
            "psnr": MeanMetric().set_dtype(torch.float64),
            "ssim": StructuralSimilarityIndexMeasure(data_range=255.0),
        }
        if perceptual is not None:
            self.means["lpips"] = MeanMetric()
        self.moments = [] if features is None else [Moments(features.num_features) for _ in range(2)]
        self.images = 0

    def to(self, device: torch.device) -> None:
        for metric in (*self.means.values(), *self.moments):
            metric.to(device)

    @torch.no_grad()
    def update(self, image_hat: Tensor, image: Tensor) -> None:
        """Both uint8 [B, 3, H, W]."""
        self.to(image.device)
        pair = image_hat.float(), image.float()
        self.means["psnr"].update(psnr(image_hat, image))
        self.means["ssim"].update(*pair)
        if self.perceptual is not None:
            self.means["lpips"].update(self.perceptual(to_x(image), to_x(image_hat)))
        if self.features is not None:
            for moments, images in zip(self.moments, (image, image_hat), strict=True):
                moments.update(self.features.to(image.device)(images))
        self.images += len(image)

    def compute(self) -> dict[str, float]:
        scores = {name: float(metric.compute()) for name, metric in self.means.items()}
        if self.moments:
            scores["rfd"] = frechet_distance(*(moments.statistics() for moments in self.moments))
        return scores

    def reset(self) -> None:
        self.images = 0
        for metric in (*self.means.values(), *self.moments):
            metric.reset()
