"""Text: captions of the training images, and prompts, which are told in the same way."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.conditioning.labels import Conditioning, Kept
from ldm.conditioning.pretrained_text import PretrainedText
from ldm.conditioning.tokenizer import BYTES, Tokenizer, vocabulary_of
from ldm.runtime.ranges import Count, checked


class Text(Conditioning, ABC):
    """What every kind of text shares: its tokens are a context with a mask; the empty text is the null condition.

    Args:
        pooled: whether the mean of the tokens is told beside the time, too
        labels: whether the network is told the label, too
    """

    def __init__(self, *, pooled: bool, labels: bool) -> None:
        self.pooled, self.labels = pooled, labels

    def _told_as(self, context_dim: int) -> dict[str, Any]:
        """The network's arguments for tokens of so many channels."""
        return {"context_dim": context_dim} | ({"context_pooled": True} if self.pooled else {})

    @abstractmethod
    def said(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens or embeddings, [B, L] or [B, L, D], and which are there, bool [B, L]."""

    def prompts(self, texts: Sequence[str], labels: Tensor) -> Condition:
        """The condition of texts, and of labels [B], which are the null class unless the network was told labels."""
        context, mask = self.said(texts)
        return Condition(labels, context=context, mask=mask)

    def blank(self, n: int, latent_shape: tuple[int, ...]) -> dict[str, Tensor]:
        null = self.null(0, latent_shape).rows([0] * n)
        assert null.context is not None
        assert null.mask is not None
        return {"context": null.context, "mask": null.mask}

    def condition(
        self, x0: Tensor, label: Tensor, null: Condition, told: Mapping[str, Tensor], *drawn: Tensor
    ) -> tuple[Condition, Tensor | None]:
        label = label if self.labels else null.label.to(label.device).expand(len(label))
        return Condition(label, context=told["context"], mask=told["mask"]), None


class Captions(Text):
    """Captions that the network itself learns to read (as LDM's transformer was trained with its U-Net: Rombach et al.
    2022, section 4.3.1): words are numbered by the training images' own vocabulary.

    Args:
        tokens:     L, of a text; what goes beyond is cut off
        vocabulary: words that have a number at most; others are spelled
        width:      channels of a token's embedding
        depth:      layers of the transformer over them
        pooled:     see `Text`
        labels:     see `Text`
        words:      the vocabulary; [] is read from the latents' captions
    """

    reads = ("captions",)

    @checked
    def __init__(
        self,
        *,
        tokens: Count = 32,
        vocabulary: Count = 8192,
        width: Count = 256,
        depth: Count = 2,
        pooled: bool = False,
        labels: bool = False,
        words: Sequence[str] = (),
    ) -> None:
        super().__init__(pooled=pooled, labels=labels)
        if len(words) > vocabulary:
            raise ValueError(f"condition.words has {len(words)} words, more than condition.vocabulary={vocabulary}")
        self.width, self.words = width, list(words)
        self.shape = {"vocabulary": 1 + BYTES + vocabulary, "tokens": tokens, "depth": depth}
        self.vocabulary = vocabulary
        self.tokenize = Tokenizer(self.words, tokens)

    def said(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenize(texts)

    def learned(self, kept: Kept) -> dict[str, Any]:
        if kept.captioned == 0:
            raise ValueError(
                f"latents={kept.place} have no captions, which condition=text learns to read: cache images that have "
                "some (metadata.jsonl in a folder, .txt in shards), or choose another condition="
            )
        return {} if self.words else {"words": vocabulary_of(kept.captions(), self.vocabulary)}

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return self._told_as(self.width) | {"text": self.shape}

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        return self.prompts([""], torch.tensor([num_classes]))

    def tensors(self, rows: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        context, mask = self.said([caption.decode() for caption in rows["captions"].tolist()])
        return {"context": context, "mask": mask}


class Embeddings(Text):
    """Captions as a pretrained text encoder reads them, whose embeddings were cached beside the latents (as Imagen and
    its followers do: Saharia et al. 2022); prompts are encoded when they are given.

    Args:
        width:   D, channels of an embedding; null is as the latents have it
        tokens:  L, of a text; likewise
        encoder: source and fingerprint of the encoder; likewise
        pooled:  see `Text`
        labels:  see `Text`
    """

    reads = ("embeddings", "text_mask")

    @checked
    def __init__(
        self,
        *,
        width: Count | None = None,
        tokens: Count | None = None,
        encoder: dict[str, str] | None = None,
        pooled: bool = False,
        labels: bool = False,
    ) -> None:
        super().__init__(pooled=pooled, labels=labels)
        self.width, self.tokens, self.encoder = width, tokens, encoder
        self.source = None if encoder is None else encoder["source"]

    def read_by(self, source: str) -> "Embeddings":
        """The same, whose encoder lies elsewhere."""
        moved = copy(self)
        moved.source = source
        return moved

    def learned(self, kept: Kept) -> dict[str, Any]:
        card = kept.text_encoder
        if card is None:
            raise ValueError(
                f"latents={kept.place} have no embeddings of captions: cache them with text_encoder=, or choose "
                "condition=text, whose encoder is trained with the network"
            )
        if self.encoder is not None and self.encoder["fingerprint"] != card["fingerprint"]:
            raise ValueError(f"latents={kept.place} have embeddings of another text encoder: {card['source']}")
        encoder = {"source": card["source"], "fingerprint": card["fingerprint"]}
        return {"width": card["width"], "tokens": card["tokens"], "encoder": encoder}

    def network(self, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return self._told_as(self._shape()[1])

    def null(self, num_classes: int, latent_shape: tuple[int, ...]) -> Condition:
        tokens, width = self._shape()
        context, mask = nothing(1, tokens, width)
        return Condition(torch.tensor([num_classes]), context=context, mask=mask)

    def _shape(self) -> tuple[int, int]:
        if self.width is None or self.tokens is None:
            raise ValueError("condition.width and tokens are the latents' to say: give both where there are none")
        return self.tokens, self.width

    def tensors(self, rows: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {"context": torch.from_numpy(rows["embeddings"]).float(), "mask": torch.from_numpy(rows["text_mask"])}

    def said(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, width = self._shape()
        if all(not text.strip() for text in texts):
            return nothing(len(texts), tokens, width)
        assert self.encoder is not None
        encoder = PretrainedText.load(str(self.source), tokens)
        if encoder.fingerprint != self.encoder["fingerprint"]:
            raise ValueError(
                f"text_encoder={self.source} has other weights than the encoder that the model was trained with"
            )
        embeddings, mask = encoder(texts)
        return embeddings.half().float(), mask  # as the cache rounds them


def needs_caption(conditioning: Conditioning, label_dropout: float) -> bool:
    """Whether a network was told a caption in all of its training, and knows nothing of the null condition."""
    return isinstance(conditioning, Text) and conditioning.unlabelled_share(label_dropout) == 0


def nothing(n: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """The embeddings of n empty texts: one token of zeros each."""
    mask = torch.zeros(n, tokens, dtype=torch.bool)
    mask[:, 0] = True
    return torch.zeros(n, tokens, width), mask
