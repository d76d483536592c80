"""DiffAugment (Zhao et al. 2020): random, differentiable changes to what the discriminator sees, real and
reconstructed images alike."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A number between low and high for each image of x [B, 3, H, W]: [B, 1, 1, 1]."""
    return torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).uniform_(low, high)


def color(x: Tensor) -> Tensor:
    """Brightness changed by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5, for x in [-1, 1]."""
    x = x + uniform(x, -0.5, 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(x, 0.0, 2.0)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * uniform(x, 0.5, 1.5)


def translation(x: Tensor) -> Tensor:
    """Moved by up to an eighth of the side in each direction; zeros move in."""
    _, _, height, width = x.shape
    dy, dx = (
        torch.round(uniform(x, -side / 8, side / 8)).long().flatten()[:, None] for side in (height, width)
    )  # [B, 1]
    padded = F.pad(x, (1, 1, 1, 1))  # what lies outside is read from the border of zeros
    rows = (torch.arange(height, device=x.device) - dy + 1).clamp(0, height + 1)  # [B, H]
    columns = (torch.arange(width, device=x.device) - dx + 1).clamp(0, width + 1)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(x: Tensor) -> Tensor:
    """A square of half the side set to zero; it may lie partly outside."""
    _, _, height, width = x.shape
    inside = torch.ones(len(x), 1, height, width, dtype=torch.bool, device=x.device)
    for dim, side in ((2, height), (3, width)):
        center = uniform(x, 0, side)
        position = torch.arange(side, device=x.device).view([-1 if d == dim else 1 for d in range(4)])
        inside = inside & ((position + 0.5 - center).abs() < side / 4)
    return x * ~inside


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


class Augment:
    """The given policies one after another, on [B, 3, H, W]; with none, the identity."""

    def __init__(self, policies: list[str]) -> None:
        for name in policies:
            if name not in POLICIES:
                raise ValueError(f"loss.disc_augment must list {', '.join(POLICIES)}, not {name!r}")
        self.policies = [POLICIES[name] for name in policies]

    def __call__(self, x: Tensor) -> Tensor:
        for policy in self.policies:
            x = policy(x)
        return x
