"""What makes latents easy or hard to diffuse, in numbers: their spectrum, how their decoder bears changes, and what a
linear map reads out of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Decode = Callable[[Tensor], Tensor]  # latents [B, C, h, w] -> x [B, 3, H, W]
Change = Callable[[Tensor], Tensor]  # of maps [B, C, h, w] of any size


def power_spectrum(latents: Tensor) -> Tensor:
    """The variance of latents [N, C, h, w] by spatial frequency, as Skorokhodov et al. 2025 look at it: the power at
    0 ... K - 1 cycles a latent, [K], means over channels, whose sum is the mean square (Parseval)."""
    height, width = latents.shape[-2:]
    power = torch.fft.fft2(latents.double(), norm="ortho").abs().square().mean((0, 1)) / (height * width)
    y, x = (torch.fft.fftfreq(side, 1 / side).to(power) for side in (height, width))
    radius = torch.hypot(y[:, None], x[None, :]).round().long()
    sums = torch.zeros(int(radius.max()) + 1, dtype=power.dtype, device=power.device)
    return sums.index_add(0, radius.flatten(), power.flatten())


def high_share(power: Tensor, side: int) -> float:
    """The share of a spectrum's power beyond half of the highest frequency along a side, constants left out."""
    return float(power[side // 4 + 1 :].sum() / power[1:].sum().clamp(min=1e-30))


def channel_spectrum(latents: Tensor) -> Tensor:
    """The eigenvalues of the channels' covariance over images and places, [C], the largest first."""
    rows = latents.double().movedim(1, -1).flatten(0, -2)
    rows = rows - rows.mean(0)
    return torch.linalg.eigvalsh(rows.T @ rows / len(rows)).flip(0).clamp(min=0)


def effective_channels(eigenvalues: Tensor) -> float:
    """The exponential of the entropy of the eigenvalues' shares: C where all are alike, 1 where there is one alone."""
    shares = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(shares).sum().exp())


CHANGES: dict[str, Change] = {
    "half the size": lambda maps: F.interpolate(maps, scale_factor=0.5, mode="bicubic", antialias=True),
    "a quarter turn": lambda maps: maps.rot90(1, (-2, -1)),
    "mirrored": lambda maps: maps.flip(-1),
}


def change_error(decode: Decode, latents: Tensor, change: Change) -> Tensor:
    """How far decoding is from commuting with a change (EQ-VAE, Kouzelis et al. 2025, eq. 3), for latents [B, C, h, w]:
    sums over the batch of |decode(change(z)) - change(decode(z))|^2 and of |change(decode(z)) - its mean|^2, [2]."""
    wanted, made = change(decode(latents)), decode(change(latents))
    if wanted.shape != made.shape:  # half of an odd side
        wanted = F.interpolate(decode(latents), made.shape[-2:], mode="bicubic", antialias=True)
    centred = wanted - wanted.mean((-3, -2, -1), keepdim=True)
    error = made - wanted
    return torch.stack([error.double().square().sum(), centred.double().square().sum()])


def noise_error(decode: Decode, latents: Tensor, noisy: Tensor) -> Tensor:
    """The same of latents [B, C, h, w] with a little noise on them, against those without."""
    wanted = decode(latents)
    centred = wanted - wanted.mean((-3, -2, -1), keepdim=True)
    error = decode(noisy) - wanted
    return torch.stack([error.double().square().sum(), centred.double().square().sum()])


def linear_probe(latents: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor) -> float:
    """The share of held-out latents [M, C, h, w] whose label [M] a logistic regression on other latents [N, C, h, w],
    standardised, tells."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # a prior of the weights that grows with their number, since there are about as many as images
    regression = LogisticRegression(C=1 / latents[0].numel() ** 0.5, max_iter=300, tol=1e-3)
    probe = make_pipeline(StandardScaler(), regression)
    probe.fit(latents.flatten(1).cpu().numpy(), labels.cpu().numpy())
    return float(probe.score(held_out.flatten(1).cpu().numpy(), held_out_labels.cpu().numpy()))
