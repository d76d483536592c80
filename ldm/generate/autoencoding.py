"""A trained autoencoder alone, as Python sees it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.images import to_image, x_of
from ldm.models.autoencoder import Autoencoder


@dataclass(frozen=True, repr=False)
class AutoencoderModel:
    """A trained autoencoder: it encodes and decodes."""

    autoencoder: Autoencoder

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W] -> z [B, C, h, w]: the posterior's mean."""
        return self.autoencoder.encode(x_of(images, self.device)).mean

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] -> images, uint8 [B, 3, H, W]."""
        return to_image(self.autoencoder.decode(z.to(self.device)))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.autoencoder.last_layer.device

    def __repr__(self) -> str:
        return f"AutoencoderModel(images / {self.autoencoder.downsample_factor}, on {self.device})"
