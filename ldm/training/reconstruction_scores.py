"""What a validation measures of the autoencoder, on the averaged weights."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ldm.metrics.latent_statistics import LatentStatistics
from ldm.metrics.reconstruction import ReconstructionMetrics
from ldm.models.quantizer import Quantizer, usage
from ldm.runtime.ranks import mean_over_ranks


class ReconstructionScores(Callback):
    """Logs val/psnr, val/ssim, val/lpips, val/rfd, and latent_{mean, std, kurtosis, kl}/CHANNEL; of codes
    val/codes_used, the share of all that the validation uses, and val/perplexity.

    A callback, so that the feature networks are no part of what is trained, averaged and saved.
    """

    def __init__(self, metrics: ReconstructionMetrics, channels: int) -> None:
        self.metrics, self.latents = metrics, LatentStatistics(channels)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.reset()
        self.latents.reset()
        self.latents.to(pl_module.device)
        quantize: Quantizer | None = pl_module.autoencoder.quantize  # type: ignore[union-attr, assignment]
        self.codes = None if quantize is None else torch.zeros(quantize.count, device=pl_module.device)  # how often

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.metrics.update(outputs["image_hat"], batch[0])
        self.latents.update(outputs["moments"])
        if self.codes is not None:
            self.codes += torch.bincount(outputs["codes"].flatten(), minlength=len(self.codes))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metrics.images == 0:
            raise ValueError("no validation image could be decoded: give more, or mend them")
        pl_module.log_dict({f"val/{name}": value for name, value in self.metrics.compute().items()})
        if self.codes is not None:
            used, perplexity = usage(mean_over_ranks(self.codes))
            pl_module.log_dict({"val/codes_used": used, "val/perplexity": perplexity})
        for name, channels in self.latents.compute().items():
            values: dict[str, Tensor] = {f"latent_{name}/{i}": value.float() for i, value in enumerate(channels)}
            pl_module.log_dict(values)
