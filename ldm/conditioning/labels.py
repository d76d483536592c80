"""What every kind of condition says, and the plain one: a label and nothing else."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.condition import Condition, labelled, no_label


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a latent cache keeps beside its latents.

    place:          its folder, for errors
    captioned:      how many training images have a caption
    captions:       all of the training images' captions, one by one; "" for none
    text_encoder:   of the embeddings of captions: source, fingerprint, tokens, width; None where there are none
    low_resolution: side of the small copies of the images, in pixels; None where there are none
    resolution:     side of the images
    latent_size:    height of their latents
    """

    place: str
    captioned: int
    captions: Callable[[], Iterable[str]]
    text_encoder: dict[str, Any] | None
    low_resolution: int | None
    resolution: int
    latent_size: int


class Conditioning:
    """What a network is told, made of a batch of latents in training: here the label alone.

    Another kind overrides what differs. `reads` names what it wants of the cache, beside latents and labels: captions,
    embeddings, text_mask, low (see `ldm.data.shard_writer`).
    """

    reads: tuple[str, ...] = ()
    labels: bool = True  # whether the network is told labels

    def unlabelled_share(self, label_dropout: float) -> float:
        """How many samples of a training were told no label, and what else there is; label_dropout drops it all."""
        return label_dropout

    def learned(self, kept: Kept) -> dict[str, Any]:
        """Arguments of its own that the latents alone can tell; its card holds them.

        Raises:
            ValueError: if the cache does not keep what it reads.
        """
        return {}

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments that the network needs for it, for latents of C, h, w."""
        return {}

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        """What the network is told, in one row, where nothing is said."""
        return no_label(num_classes)

    def of_labels(self, labels: Tensor, null: Condition) -> Condition:
        """The condition of labels [B] and of nothing else; the null one where the network was told no labels."""
        return labelled(labels if self.labels else null.label.to(labels.device).expand(len(labels)), null)

    def tensors(self, rows: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """What the data loader makes of the cache's rows that it `reads`, of n each."""
        return {}

    def blank(self, n: int, latent_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Of the shapes and types of what `tensors` makes, for n latents of C, h, w."""
        return {}

    def draw(self, n: int, latent_shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """The random numbers of n samples, of n rows each."""
        return ()

    def condition(
        self, x0: Tensor, label: Tensor, null: Condition, told: Mapping[str, Tensor], *drawn: Tensor
    ) -> tuple[Condition, Tensor | None]:
        """What the network is told of latents x0 [B, C, h, w] and labels [B], and where its errors count, [B, 1, h, w];
        None: everywhere. null, told, drawn: see `null`, `tensors` and `draw`."""
        return Condition(label), None


class Labels(Conditioning):
    """The label alone."""
