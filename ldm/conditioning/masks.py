"""Random masks, 1 where a picture is hidden, as [n, 1, h, w] of zeros and ones."""

import torch
from torch import Tensor

STROKES = 4  # of a brush, each from where the last one ended


def boxes(n: int, height: int, width: int, device: torch.device) -> Tensor:
    """A rectangle anywhere, each side at least a quarter of the picture's and less than all of it."""
    inside = torch.ones(n, 1, height, width, device=device)
    for size, dim in ((height, 2), (width, 3)):
        share, place = torch.rand(2, n, 1, 1, 1, device=device)
        side = (size * (0.25 + 0.65 * share)).round().clamp(1, max(size - 1, 1))
        start = ((size - side) * (1.5 * place - 0.25).clamp(0, 1)).round()  # a half of them touch an edge
        at = torch.arange(size, device=device).view([-1 if d == dim else 1 for d in range(4)])
        inside = inside * ((at >= start) & (at < start + side))
    return inside


def brushes(n: int, height: int, width: int, device: torch.device) -> Tensor:
    """Strokes from point to point, an eighth to a third of the picture's shorter side wide."""
    points = torch.rand(n, STROKES + 1, 2, device=device) * torch.tensor([height, width], device=device)
    radius = min(height, width) * (0.06 + 0.1 * torch.rand(n, 1, 1, device=device))
    y, x = (torch.arange(size, device=device) + 0.5 for size in (height, width))
    at = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)  # [h, w, 2]
    hidden = torch.zeros(n, height, width, dtype=torch.bool, device=device)
    for start, end in zip(points[:, :-1].unbind(1), points[:, 1:].unbind(1), strict=True):
        way, since = (end - start)[:, None, None], at - start[:, None, None]
        share = ((since * way).sum(-1) / way.square().sum(-1).clamp(min=1e-6)).clamp(0, 1)
        hidden |= (since - share[..., None] * way).norm(dim=-1) <= radius.clamp(min=0.5)
    return hidden[:, None].float()


def halves(n: int, height: int, width: int, device: torch.device) -> Tensor:
    """The left, the right, the upper or the lower half."""
    y = (torch.arange(height, device=device) >= height / 2).float()[:, None].expand(height, width)
    x = (torch.arange(width, device=device) >= width / 2).float()[None].expand(height, width)
    return torch.stack([y, 1 - y, x, 1 - x])[torch.randint(4, (n,), device=device)][:, None]


def whole(n: int, height: int, width: int, device: torch.device) -> Tensor:
    """All of it."""
    return torch.ones(n, 1, height, width, device=device)
