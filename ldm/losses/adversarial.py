"""Hinge losses (Lim & Ye 2017) and the adaptive weight of VQGAN (Esser et al. 2021, eq. 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(E relu(1 - D(x)) + E relu(1 + D(x_hat))) / 2: 1 for a discriminator that says 0 everywhere."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """-E D(x_hat)."""
    return -fake.mean()


def balance(nll: Tensor, g: Tensor, x_hat: Tensor, last_layer: Tensor, disc_weight: float) -> tuple[Tensor, Tensor]:
    """(loss, w): a scalar whose gradient is that of nll + w g, with VQGAN's adaptive weight

        w = disc_weight clamp(|d nll / dW| / (|d g / dW| + 1e-4), 0, 1e4),

    where W is the last layer, which makes x_hat. Both terms are differentiated once, down to x_hat; the rest is linear.
    So measuring w costs two products at W instead of a second backward pass through LPIPS and the discriminator.
    """
    (nll_slope,) = torch.autograd.grad(nll, x_hat)  # [B, 3, H, W]
    (g_slope,) = torch.autograd.grad(g, x_hat)
    (nll_grad,) = torch.autograd.grad(x_hat, last_layer, nll_slope, retain_graph=True)
    (g_grad,) = torch.autograd.grad(x_hat, last_layer, g_slope, retain_graph=True)
    weight = disc_weight * (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0.0, 1e4)
    linear = (x_hat * (nll_slope + weight * g_slope)).sum()
    return linear - linear.detach() + (nll + weight * g).detach(), weight
