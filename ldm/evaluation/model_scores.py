"""What `ldm evaluate` can say of an autoencoder and of a diffusion model: see scores.py."""

from dataclasses import dataclass
from typing import Any

import torch

from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.data.sources import Source
from ldm.evaluation.bits_per_dim import bits_per_dim
from ldm.evaluation.image_sets import ImageSet, SourceSet
from ldm.evaluation.sample_scores import Reader
from ldm.images import to_image, to_x
from ldm.losses.perceptual import PerceptualLoss
from ldm.metrics.features import Extractor
from ldm.metrics.reconstruction import ReconstructionMetrics
from ldm.metrics.statistics import pixel_sum, pixels_fingerprint
from ldm.models.tiling import tiled


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """PSNR, SSIM, LPIPS and rFD of the posterior mean's reconstructions of held-out images.

    Args:
        autoencoder: whose.
        held_out: the images.
        extractor: for rFD; None leaves it out.
        perceptual: LPIPS; None leaves it out.
        tile: side in pixels of the tiles that large images are cut into; None takes them whole.
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
        """Scores over all ranks."""
        scores, pixels = ReconstructionMetrics(self.perceptual, self.extractor), 0
        model, factor = self.autoencoder.model.to(read.device), self.autoencoder.model.downsample_factor
        side, overlap = (self.tile, self.tile // 4) if self.tile else (1 << 30, 0)
        with torch.inference_mode():
            for image, _ in read(self.held_out, "reconstruction"):
                pixels += pixel_sum(image)
                z = tiled(lambda x: model.encode(x).mean, to_x(image), side, overlap)
                scores.update(to_image(tiled(model.decode, z, side // factor, overlap // factor)), image)
        scores.to(torch.device("cpu"))  # where ranks exchange finished results
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
        of = self.held_out.card | {"images": images, "pixels": pixels}
        depends = shares[0]["depends"] | {"held_out_images": of}
        own = {"images": images, "autoencoder": self.autoencoder.fingerprint, "depends": depends}
        return {"reconstruction": {k: v for k, v in shares[0].items() if k != "pixels"} | own}


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits per dimension of held-out latents, and the bound on those of their images: see `ldm likelihood`."""

    model: LoadedDiffusion
    autoencoder: LoadedAutoencoder
    source: Source
    num: int
    seed: int

    def look(self, read: Reader) -> Reader:
        """Nothing yet: this is long, and for rank 0 alone, while waiting ranks are given up after half an hour."""
        return read

    def compute(self, shares: list[Reader]) -> dict[str, Any]:
        model, source, read = self.model, self.source, shares[0]
        found = bits_per_dim(model, self.autoencoder, source, self.num, read.batch_size, read.device, self.seed, {})
        depends = {key: found[key] for key in ("images", "seed", "batch_size", "likelihood")}
        depends["held_out_images"] = SourceSet(self.source, ("val",)).card | {"pixels": found["pixels"]}
        return {"bits_per_dim": {"value": found["image_bits_per_dim_at_most"], "terms": found, "depends": depends}}
