"""PatchGAN (Isola et al. 2017, appendix 6.1.2): a grid of logits, each of which judges one patch."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.utils.parametrizations import spectral_norm

from ldm.latents import at_least_float32
from ldm.models.layers import group_norm


class BatchNorm(nn.Module):
    """Batch normalisation over all ranks, which torch's SyncBatchNorm does on GPUs alone; always by the statistics of
    the present batch, since running ones would mix real images, reconstructions and the generator's passes."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            moments = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])  # [2, C]
            # not in evaluation, where a rank may judge images of its own while the others do not
            if self.training and dist.is_initialized() and dist.get_world_size() > 1:
                moments = all_reduce(moments) / dist.get_world_size()
            mean, square = moments
            gain = self.weight / ((square - mean.square()).clamp(min=0) + self.eps).sqrt()
            return x * gain[:, None, None] + (self.bias - mean * gain)[:, None, None]


Norm = Literal["group", "batch", "spectral", "none"]
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: group_norm(channels, eps=1e-5),
    "batch": lambda channels: BatchNorm(channels),
    "spectral": lambda channels: nn.Identity(),  # the convolutions themselves are normalised
    "none": lambda channels: nn.Identity(),
}


class PatchDiscriminator(nn.Module):
    """x [B, in_channels, H, W] -> logits [B, 1, H', W']; with 3 layers each logit sees 70 x 70 pixels.

    Args:
        in_channels: channels of the image
        channels:    width of the first layer (LDM's ndf); each further layer doubles it, up to 8 times
        num_layers:  convolutions of stride 2
        norm:        "batch" is LDM's, over all ranks; "group", the default, needs no statistics across images, ranks or
                     the two passes; "spectral" bounds each convolution's gain (Miyato et al. 2018); "none"

    An image of fewer than `min_size` pixels a side is a ValueError.
    """

    def __init__(self, *, in_channels: int = 3, channels: int = 64, num_layers: int = 3, norm: Norm = "group") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"discriminator.norm must be one of {', '.join(NORMS)}, not {norm!r}")
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            # a normalisation adds an offset of its own, so that a bias before it would do nothing
            convolution = nn.Conv2d(
                widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=norm in ("spectral", "none")
            )
            layers += [convolution, NORMS[norm](widths[i]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.min_size = 3 * 2**num_layers  # on smaller images the last two convolutions are wider than their input
        self.apply(init_weights)
        if norm == "spectral":
            for layer in self.main:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} are too small: the discriminator needs {self.min_size} px"
            )
        return self.main(x)


def init_weights(module: nn.Module) -> None:
    """Convolutions ~ N(0, 0.02), normalisation scales ~ N(1, 0.02), as in pix2pix and LDM."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, BatchNorm | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
