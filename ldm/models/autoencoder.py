"""The KL autoencoder of Rombach et al. 2022, layer for layer and name for name, so that published weights fit.

Options that LDM does not have are off by default.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.latents import DiagonalGaussian, holds_codes
from ldm.models.layers import check_factors, group_norm, upsample_nearest
from ldm.models.quantizer import Quantizer, quantizer_of
from ldm.runtime.ranges import Blocks, Count, Widths

EPS = 1e-6  # of every GroupNorm here, as in LDM


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU and a 3 x 3 convolution, twice, added to the input, projected where the channels differ."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, EPS, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, EPS, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention with a single head, over the h w positions, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # [B, 1, hw, C]: the fused kernels take four dimensions only, the last one's elements side by side
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None].contiguous() for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Half the height and width, by a 3 x 3 convolution of stride 2 padded on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the height and width, by the nearest neighbour, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upsample_nearest(x))


class Level(nn.Module):
    """Residual blocks at one resolution, attention after each of them where asked, then a change of resolution."""

    def __init__(self, channels: Sequence[int], attention: bool, resample: dict[str, nn.Module], groups: int) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b, groups) for _, b in pairs if attention)
        for name, module in resample.items():  # "downsample" or "upsample", or none at the lowest or highest level
            self.add_module(name, module)
        self.resample = tuple(resample)

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn) > 0:
                h = self.attn[i](h)
        for name in self.resample:
            h = self.get_submodule(name)(h)
        return h


class Mid(nn.Module):
    """Block, attention, block, at the lowest resolution of every autoencoder."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """x [B, in_channels, H, W] -> [B, out_channels, H/f, W/f]."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        out_channels: int,
        attention: Sequence[int],
        groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        previous = widths[0]
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            resample: dict[str, nn.Module] = {} if last else {"downsample": Downsample(width)}
            self.down.append(Level([previous] + [width] * num_res_blocks, 2**i in attention, resample, groups))
            previous = width
        self.mid = Mid(previous, groups)
        self.norm_out = group_norm(previous, EPS, groups)
        self.conv_out = nn.Conv2d(previous, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """z [B, in_channels, h, w] -> [B, out_channels, h f, w f]; one residual block more a level than the encoder."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        out_channels: int,
        attention: Sequence[int],
        groups: int,
    ) -> None:
        super().__init__()
        previous = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, previous, 3, padding=1)
        self.mid = Mid(previous, groups)
        levels = []
        for i, width in reversed(list(enumerate(widths))):
            resample: dict[str, nn.Module] = {"upsample": Upsample(width)} if i > 0 else {}
            levels.append(Level([previous] + [width] * (num_res_blocks + 1), 2**i in attention, resample, groups))
            previous = width
        self.up = nn.ModuleList(reversed(levels))  # indexed by level, as LDM's keys are; walked from the last
        self.norm_out = group_norm(previous, EPS, groups)
        self.conv_out = nn.Conv2d(previous, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        h = F.silu(self.norm_out(h))
        with torch.autocast(h.device.type, enabled=False):  # pixels, and the gradients that weigh the GAN, in float32
            return self.conv_out(h.to(self.conv_out.weight.dtype))


class Autoencoder(nn.Module):
    """From images to diagonal Gaussian posteriors, and back; f = 2 ** (len(channel_mult) - 1) pixels a latent position.

    Args:
        in_channels:           channels of the image
        channels:              the width, in channels, that channel_mult multiplies
        channel_mult:          the width at each resolution, in `channels`; each further one halves height and width
        num_res_blocks:        residual blocks at each resolution; the decoder has one more
        latent_channels:       C, the latent's channels
        attention_resolutions: downsample factors at which there is attention; in the middle there always is. LDM's
                               configs give pixels: its "attention at 16" for 256 pixels is the factor 16 here
        variational:           False makes a plain autoencoder, whose posterior is its mean (with the least std, 3e-7)
        norm_groups:           groups of every GroupNorm, 32 as in LDM. Of fewer than 128 channels they hold so few each
                               that the norm takes colour and brightness away (a channel alone in its group loses its
                               mean): take channels / 4
        shortcut:              a linear map from f x f pixels to their latent, and one back, beside the two networks. It
                               soon holds what a principal-component analysis of patches would, and the networks learn
                               what that misses. LDM has none; where the budget is small it is worth decibels
                               (docs/quality.md), since the norms first have to learn to pass on brightness and detail
        quantizer:             kind (vq or fsq) and arguments of what makes codes of latents before they are decoded
                               (see `ldm.models.quantizer`); None of a continuous autoencoder
    """

    def __init__(
        self,
        *,
        in_channels: Count = 3,
        channels: Count,
        channel_mult: Widths,
        num_res_blocks: Blocks,
        latent_channels: Count,
        attention_resolutions: Sequence[Count] = (),
        variational: bool = True,
        norm_groups: Count = 32,
        shortcut: bool = False,
        quantizer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if quantizer is not None and variational:
            raise ValueError("autoencoder.quantizer goes with a plain encoder: variational=false")
        check_factors("autoencoder", attention_resolutions, len(channel_mult))
        widths = [channels * m for m in channel_mult]
        self.downsample_factor = f = 2 ** (len(widths) - 1)
        self.variational = variational
        parameters = 2 * latent_channels if variational else latent_channels  # of the posterior
        self.encoder = Encoder(in_channels, widths, num_res_blocks, parameters, attention_resolutions, norm_groups)
        self.quant_conv = nn.Conv2d(parameters, parameters, 1)
        self.quantize = quantizer_of(quantizer, latent_channels)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(latent_channels, widths, num_res_blocks, in_channels, attention_resolutions, norm_groups)
        # beside the 1 x 1 convolutions, too: behind them it was a decibel worse (docs/quality.md)
        self.encoder_shortcut = nn.Conv2d(in_channels, parameters, f, stride=f) if shortcut else None
        self.decoder_shortcut = nn.ConvTranspose2d(latent_channels, in_channels, f, stride=f) if shortcut else None

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """x [B, 3, H, W] in [-1, 1] -> posterior, [B, C, H/f, W/f]."""
        f = self.downsample_factor
        if x.shape[-1] % f or x.shape[-2] % f:
            raise ValueError(f"image size {tuple(x.shape[-2:])} is not a multiple of the autoencoder's factor {f}")
        parameters = self.quant_conv(self.encoder(x))
        if self.encoder_shortcut is not None:
            parameters = parameters + self.encoder_shortcut(x)
        return DiagonalGaussian.from_parameters(parameters) if self.variational else DiagonalGaussian.point(parameters)

    def decode(self, z: Tensor) -> Tensor:
        """Raw latent z [B, C, h, w], which a quantiser rounds to codes first, or these codes, long [B, 1, h, w] (below
        0: none, a vector of zeros) -> x [B, 3, h f, w f]; neither samples nor scales."""
        if holds_codes(z):
            return self.decode_quantized(self._quantizer().vectors(z[:, 0].clamp(min=0)) * (z >= 0))
        return self.decode_quantized(z if self.quantize is None else self.quantize(z).z)

    def codes(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] in [-1, 1] -> codes, long [B, 1, H/f, W/f]; ValueError of an autoencoder that has none."""
        return self._quantizer()(self.encode(x).mean).codes[:, None]

    def _quantizer(self) -> Quantizer:
        if self.quantize is None:
            raise ValueError("this autoencoder has no codes: train one with regularizer=vq or fsq")
        return self.quantize

    def decode_quantized(self, z: Tensor) -> Tensor:
        """The same of latents that are codes' vectors already."""
        x = self.decoder(self.post_quant_conv(z))
        if self.decoder_shortcut is None:
            return x
        with torch.autocast(z.device.type, enabled=False):  # as the decoder's last layer
            return x + self.decoder_shortcut(z.to(self.decoder_shortcut.weight.dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """Reconstruct x from one posterior sample: (x_hat, posterior)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample()), posterior

    @property
    def last_layer(self) -> Any:
        """The decoder's last weight, at which the adaptive discriminator weight is measured."""
        return self.decoder.conv_out.weight
