"""Super-resolution: a small copy of the picture, a little noisy, beside x_t."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Condition
from ldm.conditioning.labels import Conditioning, Kept
from ldm.images import to_x
from ldm.runtime.ranges import Count, Fraction, Positive, Share, checked


class Upscale(Conditioning):
    """The picture of fewer pixels, resized to the latent's cells and put beside x_t (LDM-SR: Rombach et al. 2022,
    section 4.4), with noise of a level that is told (Ho et al. 2022, cascaded diffusion, section 4.3): a network
    that has seen such takes pictures that are not quite like the small copies of its training.

    concat is [level, small picture], [B, 1 + C', h, w]; nothing said is level 1 and no picture.

    Args:
        factor:     by how much more pixels a side the result has
        noise:      level up to which the small copies are noised, as sqrt(1 - level^2) x + level eps
        unlabelled: share of samples that are told the picture, and no label
        per_cell:   pixels of the small picture a side to a cell of the latent; null is as the latents have it
    """

    reads = ("low",)

    @checked
    def __init__(
        self, *, factor: Count, noise: Fraction = 0.5, unlabelled: Share = 0.1, per_cell: Positive | None = None
    ) -> None:
        if per_cell is not None and not (per_cell.is_integer() or (1 / per_cell).is_integer()):
            raise ValueError(f"condition.per_cell={per_cell:g} must be a whole number, or 1 over one")
        self.factor, self.noise, self.unlabelled, self.per_cell = factor, noise, unlabelled, per_cell

    def learned(self, kept: Kept) -> dict[str, Any]:
        side, rest = divmod(kept.resolution, self.factor)
        if rest or kept.low_resolution != side:
            wanted = f"low_resolution={side}" if not rest else f"data.resolution= of a multiple of {self.factor}"
            raise ValueError(
                f"latents={kept.place} keep no copies of 1/{self.factor} of {kept.resolution} pixels a side, which "
                f"condition.factor={self.factor} needs: cache them anew with {wanted}"
            )
        per_cell = side / kept.latent_size
        if self.per_cell not in (None, per_cell):
            raise ValueError(f"latents={kept.place} have {per_cell:g} small pixels a cell, not {self.per_cell:g}")
        return {"per_cell": per_cell}

    def unlabelled_share(self, label_dropout: float) -> float:
        return self.unlabelled

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return {"concat_channels": 1 + 3 * max(1, int(self._per_cell())) ** 2}

    def _per_cell(self) -> float:
        if self.per_cell is None:
            raise ValueError("condition.per_cell is the latents' to say: give it where there are none")
        return self.per_cell

    def small_size(self, latent_shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the small picture whose result has latents of C, h, w."""
        height, width = latent_shape[1:]
        return int(height * self._per_cell()), int(width * self._per_cell())

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        nothing = torch.zeros(1, 3, *self.small_size(latent_shape))
        return self.small(torch.tensor([num_classes]), nothing, torch.ones(1))

    def tensors(self, rows: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {"low": torch.from_numpy(rows["low"])}

    def blank(self, n: int, latent_shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"low": torch.zeros(n, 3, *self.small_size(latent_shape), dtype=torch.uint8)}

    def draw(self, n: int, latent_shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """Levels [n], noise [n, 3, r, r], and numbers [n] by which labels are left out."""
        level, uniform = torch.rand(2, n, device=device)
        return self.noise * level, torch.randn(n, 3, *self.small_size(latent_shape), device=device), uniform

    def condition(
        self, x0: Tensor, label: Tensor, null: Condition, told: Mapping[str, Tensor], *drawn: Tensor
    ) -> tuple[Condition, Tensor | None]:
        level, eps, uniform = drawn
        label = torch.where(uniform < self.unlabelled, null.label.to(label.device), label)
        return self.small(label, noised(to_x(told["low"]).to(x0.dtype), level, eps), level), None

    def small(self, label: Tensor, x: Tensor, level: Tensor) -> Condition:
        """What the network is told of a small picture x in [-1, 1], [B, 3, a, b], that has noise of a level [B]."""
        k = self._per_cell()
        cells = F.pixel_unshuffle(x, int(k)) if k >= 1 else F.interpolate(x, scale_factor=1 / k, mode="bilinear")
        plane = level.to(x.dtype).view(-1, 1, 1, 1).expand(-1, 1, *cells.shape[2:])
        return Condition(label, concat=torch.cat([plane, cells], dim=1))


def noised(x: Tensor, level: Tensor, eps: Tensor) -> Tensor:
    """sqrt(1 - level^2) x + level eps, for a level [B] of each."""
    level = level.to(x.dtype).view(-1, 1, 1, 1)
    return (1 - level**2).sqrt() * x + level * eps.to(x.dtype)
