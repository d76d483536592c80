"""What `ldm evaluate` can say of an autoencoder and of a diffusion model: scores as those of sample_scores.py."""

from dataclasses import dataclass
from typing import Any

import torch

from ldm.checkpoint import LoadedAutoencoder
from ldm.evaluation.bits_per_dim import BitsPerDim
from ldm.evaluation.image_sets import ImageSet, SourceSet
from ldm.evaluation.sample_scores import Reader
from ldm.images import to_image, to_x
from ldm.losses.perceptual import PerceptualLoss
from ldm.metrics.features import Extractor
from ldm.metrics.reconstruction import ReconstructionMetrics
from ldm.metrics.statistics import pixel_sum, pixels_fingerprint
from ldm.models.tiling import tiled


@dataclass(frozen=True, kw_only=True)
class HeldOutReconstruction:
    """PSNR, SSIM, LPIPS and rFD of held-out images, reconstructed from the posterior's mean.

    Args:
        autoencoder: the model that reconstructs
        held_out   : the images
        extractor  : of the features for rFD; None = no rFD
        perceptual : LPIPS; None = no LPIPS
        tile       : side, in pixels, of the tiles that images are cut into; None = images are taken in one piece
    """

    autoencoder: LoadedAutoencoder
    held_out: ImageSet
    extractor: Extractor | None
    perceptual: PerceptualLoss | None
    tile: int | None

    def __post_init__(self) -> None:
        factor, side = self.autoencoder.model.downsample_factor, self.held_out.card["resolution"]
        if side % factor:
            raise ValueError(f"data.resolution={side} is not a multiple of the autoencoder's factor {factor}")
        if self.tile is not None and self.tile % (4 * factor):
            raise ValueError(
                f"tile={self.tile} must be a multiple of {4 * factor}, four times the autoencoder's factor"
            )

    def look(self, read: Reader) -> dict[str, Any]:
        """This rank's scores, which torchmetrics has computed over the images of all ranks."""
        scores, pixels = ReconstructionMetrics(self.perceptual, self.extractor), 0
        model, factor = self.autoencoder.model.to(read.device), self.autoencoder.model.downsample_factor
        side, overlap = (self.tile, self.tile // 4) if self.tile else (1 << 30, 0)
        with torch.inference_mode():
            for image, _ in read(self.held_out, "reconstruction"):
                pixels += pixel_sum(image)
                z = tiled(lambda x: model.encode(x).mean, to_x(image), side, overlap)
                scores.update(to_image(tiled(model.decode, z, side // factor, overlap // factor)), image)
        scores.to(torch.device("cpu"))  # ranks exchange finished results there
        depends = {
            "of": "posterior mean",
            "tile": self.tile,
            "lpips_weights": None if self.perceptual is None else self.perceptual.identity,
            "extractor": None if self.extractor is None else self.extractor.identity,
        }
        return {"images": scores.images, "pixels": pixels, "depends": depends} | scores.compute()

    def compute(self, shares: list[dict[str, Any]]) -> dict[str, Any]:
        images = sum(share["images"] for share in shares)  # of a few images, some ranks may have none
        if images == 0:
            raise ValueError("no held-out image could be decoded")
        pixels = pixels_fingerprint(sum(share["pixels"] for share in shares))
        images_seen = self.held_out.card | {"images": images, "pixels": pixels}
        depends = shares[0]["depends"] | {"held_out_images": images_seen}
        stamped = {"images": images, "autoencoder": self.autoencoder.fingerprint, "depends": depends}
        return {"reconstruction": {key: value for key, value in shares[0].items() if key != "pixels"} | stamped}


@dataclass(frozen=True, kw_only=True)
class HeldOutLikelihood:
    """Bits per dimension of held-out latents, and the bound on those of their images, as `ldm likelihood` has them."""

    bits: BitsPerDim

    def look(self, read: Reader) -> Reader:
        """Computes nothing: rank 0 alone computes this, and the others would wait for it longer than ranks may wait."""
        return read

    def compute(self, shares: list[Reader]) -> dict[str, Any]:
        measured = self.bits.measure(shares[0].batch_size, shares[0].device)
        depends = {key: measured[key] for key in ("images", "seed", "batch_size", "likelihood")}
        depends["held_out_images"] = SourceSet(self.bits.source, ("val",)).card | {"pixels": measured["pixels"]}
        value = measured["image_bits_per_dim_at_most"]
        return {"bits_per_dim": {"value": value, "terms": measured, "depends": depends}}
