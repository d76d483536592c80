"""PSNR and SSIM of reconstructions, by torchmetrics, on rounded uint8 images."""

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure


class ReconstructionMetrics(MetricCollection):
    """update(x_hat, x) with uint8 images; compute() -> {"psnr": dB, "ssim": ...}, means over images."""

    def __init__(self) -> None:
        per_image = PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
        super().__init__({"psnr": per_image, "ssim": StructuralSimilarityIndexMeasure(data_range=255.0)})

    def update_images(self, image_hat: Tensor, image: Tensor) -> None:
        """Both uint8 [B, 3, H, W]."""
        self.update(image_hat.float(), image.float())
