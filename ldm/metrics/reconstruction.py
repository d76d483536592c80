"""PSNR, SSIM, LPIPS and rFD of reconstructions, on rounded uint8 images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm.images import to_x
from ldm.metrics.frechet import compute_frechet


class ReconstructionMetrics:
    """update(image_hat, image) with uint8 images, compute() -> {"psnr": dB, "ssim", "lpips", "rfd"}: means over images,
    and the Frechet distance between both sets; over all ranks of a training run.

    Args:
        perceptual: LPIPS of two batches in [-1, 1], [B]; None leaves it out.
        features: what rFD is measured with, see `ldm.metrics.features`; None leaves it out.
    """

    def __init__(self, perceptual: Callable[[Tensor, Tensor], Tensor] | None, features: nn.Module | None) -> None:
        self.perceptual = perceptual
        self.metrics: dict[str, Metric] = {
            "psnr": PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean"),
            "ssim": StructuralSimilarityIndexMeasure(data_range=255.0),
        }
        if perceptual is not None:
            self.metrics["lpips"] = MeanMetric()
        if features is not None:
            self.metrics["rfd"] = FrechetInceptionDistance(feature=features)
        self.images = 0

    @torch.no_grad()
    def update(self, image_hat: Tensor, image: Tensor) -> None:
        """Both uint8 [B, 3, H, W]."""
        for name, metric in self.metrics.items():
            metric.to(image.device)
            if name == "rfd":
                metric.update(image, real=True)
                metric.update(image_hat, real=False)
            elif name == "lpips":
                assert self.perceptual is not None
                metric.update(self.perceptual(to_x(image), to_x(image_hat)))
            else:
                metric.update(image_hat.float(), image.float())
        self.images += len(image)

    def compute(self) -> dict[str, float]:
        return {
            name: compute_frechet(metric) if isinstance(metric, FrechetInceptionDistance) else float(metric.compute())
            for name, metric in self.metrics.items()
        }

    def reset(self) -> None:
        self.images = 0
        for metric in self.metrics.values():
            metric.reset()
