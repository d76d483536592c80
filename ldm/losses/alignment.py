"""Alignment with the dense features of an encoder: of a diffusion network's layer, and of an autoencoder's latents."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.losses.adversarial import adaptive_weight
from ldm.runtime.ranges import Count, Natural, NonNegative, Positive, Share, checked
from ldm.runtime.ranks import mean_over_ranks

MOST = 1e8  # the largest adaptive weight, as in VA-VAE's code


class Tap:
    """Keeps what one of a network's blocks returned last, until it is taken.

    Args:
        net:   a network that names its `blocks`
        layer: which of them, counted from 0

    Raises:
        ValueError: if it names none, or fewer.
    """

    def __init__(self, net: nn.Module, layer: int) -> None:
        blocks = list(getattr(net, "blocks", ()))
        if layer >= len(blocks):
            known = f"has blocks 0 to {len(blocks) - 1}" if blocks else "has no attribute blocks"
            raise ValueError(f"align.layer={layer}: {type(net).__name__} {known}")
        self.factor, self.kept = int(getattr(net, "downsample_factor", 1)), None
        blocks[layer].register_forward_hook(self)

    def __call__(self, _: nn.Module, __: Any, output: Any) -> None:
        self.kept = output

    def take(self, latent_size: Sequence[int]) -> Tensor:
        """What the block returned of latents of h x w: a map [B, D, h', w'], or of tokens [B, L, D] those of the
        latent's own patches, which are the first, as one.

        Raises:
            ValueError: if it is neither.
        """
        kept, self.kept = self.kept, None
        if isinstance(kept, Tensor) and kept.dim() == 4:
            return kept
        height, width = (side // self.factor for side in latent_size)
        if not isinstance(kept, Tensor) or kept.dim() != 3 or kept.shape[1] < height * width:
            got = list(kept.shape) if isinstance(kept, Tensor) else type(kept).__name__
            raise ValueError(f"align.layer: the block returns {got}, neither [B, D, h, w] nor tokens [B, L, D]")
        return kept[:, : height * width].transpose(1, 2).unflatten(2, (height, width))


class Alignment(nn.Module):
    """REPA (Yu et al. 2025, eq. 8): a small network projects a layer of the noisy latent's network to the features of
    the clean image, and their cosine is raised, by -weight times its mean over places.

    Args:
        tap:      on the layer
        width:    its channels
        channels: of the features
        weight:   0.5 in the paper
        until:    batches after which the term counts for nothing, and is measured alone; None: it stays
        hidden:   channels of the projector's two hidden layers, 2048 in the paper
    """

    @checked
    def __init__(
        self, *, tap: Tap, width: Count, channels: Count, weight: Positive, until: Natural | None, hidden: Count
    ) -> None:
        super().__init__()
        self.tap, self.weight, self.until = tap, weight, until
        self.project = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, channels)
        )

    def forward(self, features: Tensor, latent_size: Sequence[int], batches: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of a batch whose network has just been called, a scalar, and what to log.

        Args:
            features:    of the clean images, [B, D, h, w] of any size
            latent_size: of the latents, h and w
            batches:     that were trained on before
        """
        seen = self.tap.take(latent_size)
        projected = self.project(seen.movedim(1, -1))  # [B, h', w', D]
        cosine = F.cosine_similarity(projected.float(), resized(features, seen.shape[-2:]).movedim(1, -1), dim=-1)
        mean, ended = cosine.mean(), self.until is not None and batches >= self.until
        return (0.0 if ended else -self.weight) * mean, {"alignment": mean.detach()}  # 0: ranks wait for each gradient


class LatentAlignment(nn.Module):
    """VA-VAE's vision foundation loss on an autoencoder's latents (Yao & Wang 2025, eq. 2 to 6): each place's latent,
    projected, is to be like the encoder's feature there, and pairs of places as alike as their features are. Its
    gradient on the encoder's last layer is weighed against the reconstruction's.

    Args:
        encoder:         image, uint8 [B, 3, H, W] -> features [B, D, h, w], which is not trained
        latent_channels: C
        channels:        D
        weight:          beside the adaptive one; 0.1 in the paper
        cosine_margin:   how far a latent may be from its feature: m1
        distance_margin: how far a pair's likeness may be from its features': m2
    """

    @checked
    def __init__(
        self,
        *,
        encoder: nn.Module,
        latent_channels: Count,
        channels: Count,
        weight: NonNegative,
        cosine_margin: Share,
        distance_margin: Share,
    ) -> None:
        super().__init__()
        self.encoder, self.weight = [encoder], weight  # in a list: no part of what is trained, saved and averaged
        self.cosine_margin, self.distance_margin = cosine_margin, distance_margin
        self.project = nn.Conv2d(latent_channels, channels, 1, bias=False)

    def forward(self, image: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The two terms' sum for images, uint8 [B, 3, H, W], and latents [B, C, h, w]; and what to log."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            features = resized(self.encoder[0].to(image.device)(image), z.shape[-2:])
        cosine = F.cosine_similarity(self.project(z).float(), features, dim=1)  # [B, h, w]
        marginal = F.relu(1 - self.cosine_margin - cosine).mean()
        apart = (likeness(z.float()) - likeness(features)).abs()  # [B, hw, hw]
        distances = F.relu(apart - self.distance_margin).mean()
        logged = {"alignment": cosine.mean(), "alignment_distance": apart.mean()}
        return marginal + distances, {name: value.detach() for name, value in logged.items()}

    def balanced(self, nll: Tensor, term: Tensor, last_layer: Tensor) -> Tensor:
        """The term, times its weight and |d nll / dW| / |d term / dW| at the encoder's last layer W (eq. 6), whose
        gradients are means over the ranks."""
        slopes = [torch.autograd.grad(each, last_layer, retain_graph=True)[0] for each in (nll, term)]
        of_nll, of_term = mean_over_ranks(torch.stack(slopes))
        return self.weight * adaptive_weight(of_nll, of_term, MOST) * term


def likeness(values: Tensor) -> Tensor:
    """The cosine of each pair of places: [B, C, h, w] -> [B, hw, hw]."""
    unit = F.normalize(values.flatten(2), dim=1)
    return unit.transpose(1, 2) @ unit


def resized(features: Tensor, size: Any) -> Tensor:
    """Features [B, D, h, w] of any float type at another size, in float32: means over areas, or linearly between."""
    features, size = features.float(), tuple(size)
    if features.shape[-2] >= size[0] and features.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size, mode="bilinear", align_corners=False)
