"""What every kind of condition must say, and the plain one: a label and nothing else."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.condition import Condition, no_label


class Conditioning(Protocol):
    """What a network is told, made of a batch of latents in training."""

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments that the network needs for it, for latents of C, h, w."""

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        """What the network is told, in one row, where nothing is said."""

    def draw(self, n: int, latent_shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """The random numbers of n samples, of n rows each."""

    def condition(self, x0: Tensor, label: Tensor, null: Condition, *drawn: Tensor) -> tuple[Condition, Tensor | None]:
        """What the network is told of latents x0 [B, C, h, w] and labels [B], and where its errors count, [B, 1, h, w];
        None: everywhere. null: see above; drawn: see `draw`."""


class Labels:
    """The label alone."""

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return {}

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        return no_label(num_classes)

    def draw(self, n: int, latent_shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        return ()

    def condition(self, x0: Tensor, label: Tensor, null: Condition, *drawn: Tensor) -> tuple[Condition, Tensor | None]:
        return Condition(label), None
