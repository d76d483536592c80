"""Autoregressive diffusion models of codes (ARDM, Hoogeboom et al. 2022): places are revealed in a random order, and a
network says, at once, what may stand at each that is still hidden.

codes   long [B, 1, h, w]; HIDDEN where a place is not known. logits [B, K, h, w]
t       the share of the places that is hidden, which the network is told, and which is sigma of the straight path
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.objective import Net, Objective
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.path import LinearPath, Path
from ldm.diffusion.times import TimeSampler, Uniform
from ldm.diffusion.weighting import Unweighted, Weighting
from ldm.runtime.ranges import Count, Positive, checked

HIDDEN = -1  # in place of a code


class CodePrediction(NamedTuple):
    """What a network says of codes: the likeliest ones, long [B, 1, h, w], and the logits of all [B, K, h, w]."""

    x0: Tensor
    logits: Tensor


def order_of(noise: Tensor) -> Tensor:
    """The turn at which each place of noise [B, 1, h, w] is revealed, from 0: a random order, long."""
    return noise.flatten(1).argsort(1).argsort(1).view(noise.shape)


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Objective):
    """Cross-entropy at the places that are hidden at one random step of a random order (their algorithm 2).

    With n of D places hidden the loss is the mean over these n. Its expectation over n, uniform in 1 ... D, is the
    bound -log p(codes) / D (their eq. 4): the reweighting D / n of the sum over the hidden places, by place.

    Args:
        codes: K, of each place
    """

    codes: int
    path: Path = field(default_factory=LinearPath)
    parameterization: Parameterization = "x0"
    weighting: Weighting = field(default_factory=Unweighted)
    time_sampler: TimeSampler = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes < 2:
            raise ValueError(f"objective.codes={self.codes} must be 2 or more")

    def loss(
        self,
        net: Net,
        x0: Tensor,
        condition: Condition | Tensor,
        *,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        where: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The bound in nats by place, estimated at one step, [B], and the shares of places that were hidden, [B].

        x0:    codes [B, 1, h, w]
        t:     [B], the shares, of which whole numbers of places are made; None = drawn
        eps:   noise like x0, whose order is the one in which places are revealed; None = drawn
        where: of no use here: every place counts
        """
        t = self.times(len(x0), x0.device) if t is None else t
        eps = torch.randn(x0.shape, device=x0.device) if eps is None else eps
        places = x0[0].numel()
        count = (t.double() * places).ceil().clamp(1, places)  # [B], hidden
        hidden = order_of(eps) >= (places - count).view(-1, 1, 1, 1)
        share = (count / places).to(torch.float32)
        nats = self.nats(net, torch.where(hidden, HIDDEN, x0), share, condition, x0)
        return (nats * hidden).flatten(1).sum(1) / count.to(nats), share

    def nats(self, net: Net, x_t: Tensor, share: Tensor, condition: Condition | Tensor, codes: Tensor) -> Tensor:
        """-log p of each place's code [B, 1, h, w], told those of x_t that are not HIDDEN, and their share [B]."""
        logits = net(x_t, share, Condition.of(condition))
        return F.cross_entropy(logits.float(), codes[:, 0], reduction="none")[:, None]

    def denoiser(self, net: Net, condition: Condition | Tensor) -> Any:
        """Wrap `net` as (codes with HIDDEN ones, their share) -> CodePrediction."""
        condition = Condition.of(condition)

        def denoise(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> CodePrediction:
            share = t.to(x_t.device, torch.float32).expand(len(x_t))
            return _prediction(net(x_t, share, condition))

        return denoise

    def blank(self, shape: Sequence[int]) -> Tensor:
        return torch.full(tuple(shape), HIDDEN)

    def silent(self, x_t: Tensor) -> Tensor:
        return torch.zeros(len(x_t), self.codes, *x_t.shape[2:], device=x_t.device)

    def nothing(self, x_t: Tensor) -> Any:
        return _prediction(self.silent(x_t))

    def check_sampler(self, function: Callable[..., Any]) -> None:
        if not samples_codes(function):
            raise ValueError(
                "sampler= walks latents, and this model makes codes: pass sampler=ardm, or sampler=trained"
            )


def _prediction(logits: Tensor) -> CodePrediction:
    return CodePrediction(logits.argmax(1, keepdim=True), logits)


def samples_codes(function: Callable[..., Any]) -> bool:
    """Whether a sampler, with options bound to it or not, is one of codes."""
    return bool(getattr(getattr(function, "func", function), "of_codes", False))


@checked
def ardm(
    denoise: Callable[..., CodePrediction],
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    temperature: Positive = 1.0,
    known: Tensor | None = None,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Reveal places in the order of x, those of a step at once and each by itself (section 3.4): with a step for each
    place, what is drawn is exactly the model's. times are the shares that stay hidden, rounded to whole places.

    Args:
        temperature: the logits are divided by it; below 1, likelier codes
        known:       codes like x, which stay, with HIDDEN where they are to be drawn; None: all are
        noise:       x -> standard normal of x's shape

    Returns:
        codes, long [B, 1, h, w]
    """
    codes = torch.full(x.shape, HIDDEN, device=x.device) if known is None else known
    places, wanted = x[0].numel(), (codes == HIDDEN).flatten(1).sum(1).double()  # [B]
    turn = order_of(x.masked_fill(codes != HIDDEN, -math.inf))  # what is known comes first
    for now, then in pairwise((share * wanted).round() for share in path(times).sigma.tolist()):
        if torch.equal(now, then):
            continue
        logits, level = denoise(codes, now / places).logits, torch.special.ndtr(noise(x))
        first, last = ((places - left).view(-1, 1, 1, 1) for left in (now, then))
        revealed = (turn >= first) & (turn < last)
        shares = (logits.movedim(1, -1)[revealed[:, 0]].float() / temperature).softmax(1).cumsum(1)  # [n, K]
        drawn = (shares < level[revealed][:, None] * shares[:, -1:]).sum(1).clamp(max=shares.shape[1] - 1)
        codes = codes.masked_scatter(revealed, drawn)
    return codes


ardm.of_codes = True  # type: ignore[attr-defined]


@checked
def planned_grid(path: Path, steps: Count, t_max: float = 1.0, *, losses: Sequence[float]) -> Tensor:
    """The shares of the cheapest way through so many steps, by the losses that were measured (section 3.4): n places
    that are revealed at once, while h are hidden, cost n times the loss with h hidden.

    Args:
        losses: nats by place, with 1 ... D places hidden: `by_hidden` of `ldm likelihood`

    Raises:
        ValueError: if there are fewer places than steps.
    """
    if steps > len(losses):
        raise ValueError(f"steps={steps} must be at most {len(losses)}, the places whose losses grid.losses has")
    return torch.tensor([count / len(losses) for count in plan(losses, steps)], dtype=torch.float64) * t_max


def plan(losses: Sequence[float], steps: int) -> list[int]:
    """How many of D places stay hidden after each step of the cheapest way, from D to 0: [steps + 1].

    The dynamic programme of Watson et al. (2021), in O(steps D^2): best[h] is the least cost from D hidden to h.
    """
    places = len(losses)
    loss = np.concatenate([[0.0], np.asarray(losses, dtype=np.float64)])  # by hidden places
    start, end = np.arange(places + 1)[:, None], np.arange(places + 1)[None]
    cost = np.where(end < start, (start - end) * loss[:, None], math.inf)
    best, ways = np.full(places + 1, math.inf), []
    best[places] = 0.0
    for _ in range(steps):
        total = best[:, None] + cost
        ways.append(total.argmin(0))
        best = total.min(0)
    left = [0]
    for way in reversed(ways):
        left.append(int(way[left[-1]]))
    return left[::-1]


@torch.no_grad()
def code_bound(
    objective: Autoregressive, net: Net, codes: Tensor, condition: Condition | Tensor, steps: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(codes) of codes [B, 1, h, w] is at most this many nats, [B]; the mean losses by place with some numbers of
    places hidden, and those numbers, long [S].

    One random order an image. With all numbers, the mean over orders is the bound itself; with `steps` of them, at even
    distances from a random first one, it is estimated.
    """
    places = codes[0].numel()
    count = places if steps is None else min(steps, places)
    offset = torch.rand((), dtype=torch.float64)
    numbers = torch.arange(1, places + 1) if count == places else _spread(places, count, offset)
    eps = torch.randn(codes.shape, device=codes.device)
    losses = []
    for number in numbers.tolist():
        t = torch.full((len(codes),), number / places, dtype=torch.float64, device=codes.device)
        t = t - 0.5 / places  # the ceiling is that number, whatever the rounding
        losses.append(objective.loss(net, codes, condition, t=t, eps=eps)[0].double())
    stacked = torch.stack(losses)  # [S, B]
    return places * stacked.mean(0), stacked.mean(1), numbers


def _spread(places: int, count: int, offset: Tensor) -> Tensor:
    """So many whole numbers of 1 ... places, at even distances; each is as likely as any other."""
    return ((torch.arange(count) + offset) * (places / count)).floor().long() + 1
