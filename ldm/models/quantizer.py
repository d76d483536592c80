"""Quantisers: latents to codes of a finite number, and back to the vectors that these stand for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.runtime.ranges import Count, Fraction, NonNegative, Several, checked

USED = 0.99  # what a batch leaves of a code's running share of use
EPS = 1e-5  # of Laplace's smoothing, as in van den Oord et al.'s code


class Quantized(NamedTuple):
    """Latents as their codes.

    z:        the codes' vectors, [B, C, h, w], with the latents' own gradient (straight through)
    codes:    int64 [B, h, w]
    penalty:  of each latent, [B]: what draws it and its code together; zeros where nothing does
    distance: mean square of the difference, a scalar
    """

    z: Tensor
    codes: Tensor
    penalty: Tensor
    distance: Tensor


class Quantizer(nn.Module, ABC):
    """What both kinds say. `count` is the number of codes."""

    count: int

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, C, h, w] as codes; in training, a codebook may follow them."""

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """What codes [B, h, w] stand for, [B, C, h, w]."""


class VectorQuantizer(Quantizer):
    """The nearest of learned vectors (van den Oord et al. 2017), in taming-transformers' names.

        penalty = |sg(z) - e|^2 + beta |z - sg(e)|^2        means over an image's elements; sg stops the gradient

    Args:
        channels: C
        codes:    vectors
        beta:     of the term that holds the latents to their codes; 0.25 in both papers
        legacy:   beta stands before the other term, as in taming's code by default and in LDM's published models
        cosine:   latents and vectors have length 1 (Yu et al. 2022)
        ema:      vectors are running means of their latents with this decay, and not trained (van den Oord et al.
                  2017, appendix A); 0: they are trained
        restart:  a vector that is used less than this share of the mean one becomes a latent of the batch; 0: none does
    """

    @checked
    def __init__(
        self,
        *,
        channels: Count,
        codes: Several,
        beta: NonNegative = 0.25,
        legacy: bool = False,
        cosine: bool = False,
        ema: Fraction = 0.0,
        restart: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.count, self.beta, self.legacy, self.cosine = codes, beta, legacy, cosine
        self.ema, self.restart = ema, restart
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        self.embedding.weight.requires_grad_(ema == 0)
        if ema:
            self.register_buffer("sizes", torch.zeros(codes))
            self.register_buffer("sums", torch.zeros(codes, channels))
        if restart:
            self.register_buffer("used", torch.ones(codes))  # relative to the mean share
        self.sizes: Tensor
        self.sums: Tensor
        self.used: Tensor

    def _book(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=1) if self.cosine else self.embedding.weight

    def vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._book()).movedim(-1, 1)

    def nearest(self, rows: Tensor) -> Tensor:
        """The codes [N] of rows [N, C]."""
        book = self._book().detach().to(rows.dtype)
        return (book.square().sum(1) - 2 * rows @ book.T).argmin(1)

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(self.embedding.weight.dtype)
            z = F.normalize(z, dim=1) if self.cosine else z
            rows = z.detach().movedim(1, -1).flatten(0, -2)
            codes = self.nearest(rows)
            found = self.vectors(codes.view(len(z), *z.shape[2:]))
            to_codes, to_latents = ((a - b.detach()).square().flatten(1).mean(1) for a, b in ((z, found), (found, z)))
            if self.ema:
                to_latents = torch.zeros_like(to_latents)
            first, second = (to_latents, to_codes) if not self.legacy or self.ema else (to_codes, to_latents)
            if self.training and torch.is_grad_enabled():
                self._follow(rows, codes)
            straight = z + (found - z).detach()
            shape = (len(z), *z.shape[2:])
            return Quantized(straight, codes.view(shape), first + self.beta * second, to_codes.detach().mean())

    @torch.no_grad()
    def _follow(self, rows: Tensor, codes: Tensor) -> None:
        """Move running means, and vectors that nothing uses, by the latents [N, C] of all ranks."""
        if not (self.ema or self.restart):
            return
        counts = rows.new_zeros(self.count).index_add_(0, codes, torch.ones_like(rows[:, 0]))
        _sum_over_ranks(counts)
        if self.ema:
            sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
            _sum_over_ranks(sums)
            self.sizes.mul_(self.ema).add_(counts, alpha=1 - self.ema)
            self.sums.mul_(self.ema).add_(sums, alpha=1 - self.ema)
            total = self.sizes.sum()
            smooth = (self.sizes + EPS) / (total + self.count * EPS) * total
            means = self.sums / smooth[:, None]
            self.embedding.weight.copy_(torch.where(self.sizes[:, None] > 0, means, self.embedding.weight))
        if self.restart:
            self.used.mul_(USED).add_(counts / counts.mean(), alpha=1 - USED)
            dead = self.used < self.restart
            fresh = rows[torch.randint(len(rows), (self.count,), device=rows.device)]
            _of_rank_0(fresh)
            self.embedding.weight.copy_(torch.where(dead[:, None], fresh, self.embedding.weight))
            self.used.masked_fill_(dead, 1.0)
            if self.ema:
                self.sizes.masked_fill_(dead, 1.0)
                self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))


class FiniteScalarQuantizer(Quantizer):
    """Each channel is rounded to one of a few levels (Mentzer et al. 2024): codes are all their combinations, and
    nothing is trained.

    Args:
        channels: C, as many as levels
        levels:   of each channel, as [8, 5, 5, 5] for 1,000 codes (their table 1)
    """

    @checked
    def __init__(self, *, channels: Count, levels: Sequence[Several]) -> None:
        super().__init__()
        if len(levels) != channels:
            wanted = f"pass autoencoder.latent_channels={len(levels)}"
            raise ValueError(f"regularizer.levels are of {len(levels)} channels, not of {channels}: {wanted}")
        if min(levels) < 2:
            raise ValueError(f"regularizer.levels={list(levels)} must be 2 or more each")
        self.count = math.prod(levels)
        if self.count > 2**31 - 1:
            raise ValueError(f"regularizer.levels make {self.count} codes, more than 2^31 - 1")
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.levels: Tensor

    def _places(self) -> tuple[Tensor, Tensor]:
        """Levels, and what a step of each channel is worth in a code's number, [C, 1, 1] each."""
        worth = torch.cumprod(torch.cat([self.levels.new_ones(1), self.levels[:-1]]), 0)
        return self.levels[:, None, None], worth[:, None, None]

    def rounded(self, z: Tensor) -> Tensor:
        """Latents [B, C, h, w] as whole numbers about 0, with the gradient of what is rounded (their section 3.1)."""
        levels, _ = self._places()
        half = (levels - 1) * (1 - 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = (z + torch.atanh(offset / half)).tanh() * half - offset
        return bounded + (bounded.round() - bounded).detach()

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            levels, worth = self._places()
            whole = self.rounded(z)
            codes = ((whole.detach().round().long() + levels // 2) * worth).sum(1)
            found = whole / (levels // 2)
            return Quantized(found, codes, z.new_zeros(len(z)), (found - z.tanh()).detach().square().mean())

    def vectors(self, codes: Tensor) -> Tensor:
        levels, worth = self._places()
        return ((codes[:, None] // worth) % levels - levels // 2) / (levels // 2)


KINDS: dict[str, type[Quantizer]] = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer}


def quantizer_of(node: dict[str, Any] | None, channels: int) -> Quantizer | None:
    """What a card's or a regularizer's node names: `kind`, and that kind's arguments; None of None.

    Raises:
        ValueError: for a kind that there is not, or arguments that it does not take.
    """
    if node is None:
        return None
    kind, rest = node.get("kind"), {key: value for key, value in node.items() if key != "kind"}
    if kind not in KINDS:
        raise ValueError(f"autoencoder.quantizer.kind={kind} must be one of {', '.join(KINDS)}")
    try:
        return KINDS[str(kind)](channels=channels, **rest)
    except TypeError as error:
        raise ValueError(f"autoencoder.quantizer: {error}") from None


def usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of how often each code is used, [K]: the share of codes that is used at all, and their perplexity, scalars."""
    shares = counts.float() / counts.sum()
    return (shares > 0).float().mean(), torch.special.entr(shares).sum().exp()


def _sum_over_ranks(tensor: Tensor) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)


def _of_rank_0(tensor: Tensor) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, 0)
