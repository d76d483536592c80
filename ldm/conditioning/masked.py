"""Infilling: the rest of a picture of which some is known."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Condition
from ldm.conditioning import masks
from ldm.conditioning.labels import Conditioning
from ldm.runtime.ranges import NonNegative, Share, checked


class Infill(Conditioning):
    """A mask and the latent outside it, beside x_t: what is hidden is to be made so that it fits (masks as in LDM's
    inpainting, Rombach et al. 2022, section 4.5; spans conditional on the rest, Voicebox, Le et al. 2023, section 3).

    concat is [hidden, latent where it is known], [B, 1 + C, h, w]; nothing said is all hidden.

    Args:
        boxes:      how often a rectangle is hidden, in relation to the others
        brushes:    likewise strokes of a brush
        halves:     likewise one half
        whole:      likewise all of it
        unlabelled: share of samples that are told what is known, and no label
        loss:       "hidden": errors count where it is hidden; "everywhere": also where it is known
    """

    @checked
    def __init__(
        self,
        *,
        boxes: NonNegative = 1.0,
        brushes: NonNegative = 1.0,
        halves: NonNegative = 1.0,
        whole: NonNegative = 0.5,
        unlabelled: Share = 0.1,
        loss: Literal["hidden", "everywhere"] = "hidden",
    ) -> None:
        self.shares = [boxes, brushes, halves, whole]
        if sum(self.shares) == 0:
            raise ValueError("condition.boxes, brushes, halves and whole are all 0: nothing would be hidden")
        self.unlabelled, self.loss = unlabelled, loss

    def unlabelled_share(self, label_dropout: float) -> float:
        return self.unlabelled

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return {"concat_channels": 1 + latent_shape[0]}

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        channels, height, width = latent_shape
        known = torch.zeros(1, channels, height, width)
        return known_of(torch.tensor([num_classes]), known, torch.ones(1, 1, height, width))

    def draw(self, n: int, latent_shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """Masks [n, 1, h, w], and numbers [n] by which labels are left out."""
        kinds = [masks.boxes, masks.brushes, masks.halves, masks.whole]
        shares = torch.tensor(self.shares, device=device, dtype=torch.float32)
        kind = torch.multinomial(shares, n, replacement=True)
        _, height, width = latent_shape
        drawn = torch.stack([make(n, height, width, device) for make in kinds])
        return drawn[kind, torch.arange(n, device=device)], torch.rand(n, device=device)

    def condition(
        self, x0: Tensor, label: Tensor, null: Condition, told: Mapping[str, Tensor], *drawn: Tensor
    ) -> tuple[Condition, Tensor | None]:
        hidden, uniform = drawn
        label = torch.where(uniform < self.unlabelled, null.label.to(label.device), label)
        return known_of(label, x0, hidden), hidden if self.loss == "hidden" else None


def known_of(label: Tensor, latent: Tensor, hidden: Tensor) -> Condition:
    """What the network is told of a latent [B, C, h, w] where it is not hidden, [B, 1, h, w]."""
    return Condition(label, concat=torch.cat([hidden.to(latent.dtype), latent * (1 - hidden.to(latent.dtype))], dim=1))


def hidden_cells(hidden: Tensor, factor: int, grow: int = 0) -> Tensor:
    """The cells of a latent of which any pixel is hidden, and `grow` around them: [B, 1, H, W] -> [B, 1, h, w]."""
    cells = F.max_pool2d(hidden.float(), factor)
    return F.max_pool2d(cells, 2 * grow + 1, stride=1, padding=grow) if grow else cells
