"""Captions as numbers: a vocabulary of words, beside which any text can be spelled in bytes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BEGIN = 0  # the first token of every text, and the only one of the empty text
BYTES = 256  # tokens after it: a word that is not in the vocabulary is spelled
WORD = re.compile(r"\w+|[^\w\s]")  # words, and each sign on its own


def words_of(text: str) -> list[str]:
    """The words and signs of a text, in lower case."""
    return WORD.findall(text.lower())


def vocabulary_of(texts: Iterable[str], size: int) -> list[str]:
    """The most frequent words of texts, at most `size`: of equally frequent ones, the first by the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


class Tokenizer:
    """Texts -> tokens: BEGIN, then a number a word, or its bytes.

    Args:
        words:  the vocabulary
        length: L, tokens a text; what goes beyond is cut off
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.numbers = {word: 1 + BYTES + i for i, word in enumerate(words)}
        self.length = length

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens, long [B, L], and which of them are there, bool [B, L]."""
        tokens = torch.zeros(len(texts), self.length, dtype=torch.long)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for row, text in enumerate(texts):
            spelled = [BEGIN, *(number for word in words_of(text) for number in self._numbers(word))][: self.length]
            tokens[row, : len(spelled)] = torch.tensor(spelled)
            mask[row, : len(spelled)] = True
        return tokens, mask

    def _numbers(self, word: str) -> list[int]:
        number = self.numbers.get(word)
        return [1 + byte for byte in word.encode()] if number is None else [number]
