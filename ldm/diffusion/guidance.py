"""Classifier-free guidance (Ho & Salimans 2022): label dropout in training, extrapolation in sampling."""

import torch
from torch import Tensor

from ldm.diffusion.objective import Net


def drop_labels(y: Tensor, probability: float, null_class: int) -> Tensor:
    """Replace each label of y [B] by the null class with the given probability."""
    dropped = torch.rand(y.shape, device=y.device) < probability
    return torch.where(dropped, null_class, y)


def classifier_free(net: Net, scale: float, null_class: int) -> Net:
    """A network that returns uncond + scale (cond - uncond), both branches in one batched call; scale 1 is unguided.

    Acting on the raw output equals acting on x0 and eps, since both are affine in it at a given x_t and t.
    """
    if scale == 1.0:
        return net

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        both = net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, null_class)]))
        cond, uncond = both.chunk(2)
        return torch.lerp(uncond, cond, scale)

    return guided
