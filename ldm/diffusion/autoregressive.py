"""Autoregressive diffusion models of codes (ARDM, Hoogeboom et al. 2022): places are revealed in a random order, and a
network says, at once, what may stand at each that is still hidden.

codes   long [B, 1, h, w]; HIDDEN where a place is not known. logits [B, K, h, w]
t       the share of the places that is hidden, which the network is told, and which is sigma of the straight path
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.coupling import Coupling, Independent
from ldm.diffusion.objective import Net, Objective
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.path import LinearPath, Path
from ldm.diffusion.times import TimeSampler, Uniform
from ldm.diffusion.weighting import Unweighted, Weighting
from ldm.latents import at_least_float32
from ldm.runtime.ranges import Count, Positive, checked

HIDDEN = -1  # in place of a code


@dataclass(frozen=True)
class CodePrediction:
    """What a network says of codes: the logits of all, [B, K, h, w]."""

    logits: Tensor

    @property
    def x0(self) -> Tensor:
        """The likeliest ones, long [B, 1, h, w]."""
        return self.logits.argmax(1, keepdim=True)


def order_of(noise: Tensor) -> Tensor:
    """The turn at which each place of noise [B, 1, h, w] is revealed, from 0: a random order, long."""
    return noise.flatten(1).argsort(1).argsort(1).view(noise.shape)


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Objective):
    """Cross-entropy at the places that are hidden at one random step of a random order (their algorithm 2).

    With n of D places hidden the loss is the mean over these n. Its expectation over n, uniform in 1 ... D, is the
    bound -log p(codes) / D (their eq. 4): the reweighting D / n of the sum over the hidden places, by place.

    Args:
        codes:        K, of each place
        time_sampler: of times in [0, 1), of which t stands for floor(t D) + 1 hidden places; the loss is the bound's if
                      they are uniform
    """

    codes: int
    time_sampler: TimeSampler = field(default_factory=lambda: Uniform(eps=0.0))
    # what an objective of latents may choose
    path: Path = field(init=False, default_factory=LinearPath)
    parameterization: Parameterization = field(init=False, default="x0")
    weighting: Weighting = field(init=False, default_factory=Unweighted)
    coupling: Coupling = field(init=False, default_factory=Independent)
    unit_input: bool = field(init=False, default=False)
    average: bool = field(init=False, default=False)
    scales: int = field(init=False, default=1)

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
        t:     [B], of which numbers of hidden places are made; None = drawn
        eps:   noise like x0, whose order is the one in which places are revealed; None = drawn
        where: of no use here: every place counts
        """
        t = self.times(len(x0), x0.device) if t is None else t
        eps = torch.randn(x0.shape, device=x0.device) if eps is None else eps
        places = x0[0].numel()
        count = (t.double() * places).floor().clamp(max=places - 1) + 1  # [B], hidden
        hidden = order_of(eps) >= (places - count).view(-1, 1, 1, 1)
        share = (count / places).to(torch.float32)
        nats = self.nats(net, torch.where(hidden, HIDDEN, x0), share, condition, x0)
        return torch.where(hidden, nats, 0.0).flatten(1).sum(1) / count.to(nats), share

    def nats(self, net: Net, x_t: Tensor, share: Tensor, condition: Condition | Tensor, codes: Tensor) -> Tensor:
        """-log p of each place's code [B, 1, h, w], told those of x_t that are not HIDDEN, and their share [B]."""
        logits = net(x_t, share, Condition.of(condition))
        return F.cross_entropy(at_least_float32(logits), codes[:, 0], reduction="none")[:, None]

    def denoiser(self, net: Net, condition: Condition | Tensor) -> Any:
        """Wrap `net` as (codes with HIDDEN ones, their share) -> CodePrediction."""
        condition = Condition.of(condition)

        def denoise(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> CodePrediction:
            share = t.to(x_t.device, torch.float32).expand(len(x_t))
            return CodePrediction(net(x_t, share, condition))

        return denoise

    @property
    def of_codes(self) -> bool:
        return True

    def check_states(self, x: Tensor) -> None:
        if x.is_floating_point() or x.dim() != 4 or x.shape[1] != 1:
            raise ValueError(f"codes are long [B, 1, h, w], not {x.dtype} {list(x.shape)}")
        if x.numel() and int(x.max()) >= self.codes:
            raise ValueError(f"codes go from 0 to {self.codes - 1}, not to {int(x.max())}")

    def blank(self, shape: Sequence[int]) -> Tensor:
        return torch.full(tuple(shape), HIDDEN)

    def silent(self, x_t: Tensor) -> Tensor:
        return torch.zeros(len(x_t), self.codes, *x_t.shape[2:], device=x_t.device)

    def nothing(self, x_t: Tensor) -> Any:
        return CodePrediction(self.silent(x_t))


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
        noise:       x -> standard normal of x's shape; it is asked at each step, whatever is revealed

    Returns:
        codes, long [B, 1, h, w]

    Raises:
        ValueError: if the times do not go from 1 to 0, or the network says what is not finite.
    """
    check_shares(times)
    codes = torch.full(x.shape, HIDDEN, device=x.device) if known is None else known
    places, wanted = x[0].numel(), (codes == HIDDEN).flatten(1).sum(1).double()  # [B]
    turn = order_of(x.masked_fill(codes != HIDDEN, -math.inf))  # what is known comes first
    for now, then in pairwise((share * wanted).round() for share in path(times).sigma.tolist()):
        level = torch.special.ndtr(noise(x))
        if torch.equal(now, then):
            continue
        logits = denoise(codes, now / places).logits
        first, last = ((places - left).view(-1, 1, 1, 1) for left in (now, then))
        revealed = (turn >= first) & (turn < last)
        said = logits.movedim(1, -1)[revealed[:, 0]].float()  # [n, K]
        if not said.isfinite().all():
            raise ValueError("the network's logits are not finite: take an earlier checkpoint, or weights=raw or ema")
        shares = (said / temperature).softmax(1).cumsum(1)
        drawn = (shares < level[revealed][:, None] * shares[:, -1:]).sum(1).clamp(max=shares.shape[1] - 1)
        codes = codes.masked_scatter(revealed, drawn)
    return codes


ardm.of_codes = True  # type: ignore[attr-defined]


def check_shares(times: Tensor) -> None:
    """ValueError unless times [N + 1] fall from 1, all hidden, to 0, none."""
    if times[0] != 1 or times[-1] != 0 or (times.diff() > 0).any():
        raise ValueError(
            f"the grid goes from {float(times[0]):.3g} to {float(times[-1]):.3g}, and codes are revealed from 1 to 0: "
            "pass grid=uniform, cosine or planned"
        )


def check_plan(grid: Callable[..., Tensor], places: int | None) -> None:
    """ValueError if a grid is planned by losses of another number of places; places: None of a model of latents."""
    losses = getattr(grid, "keywords", {}).get("losses")
    if losses is None or len(losses) == places:
        return
    ours = "makes latents" if places is None else f"has {places} places"
    raise ValueError(
        f"grid=planned has losses of {len(losses)} places of codes, and this model {ours}: pass another grid="
    )


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
    return t_max * torch.tensor(plan(tuple(losses), steps), dtype=torch.float64) / len(losses)


@lru_cache(maxsize=16)
def plan(losses: tuple[float, ...], steps: int) -> tuple[int, ...]:
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
    return tuple(left[::-1])


@torch.no_grad()
def code_bound(
    objective: Autoregressive, net: Net, codes: Tensor, condition: Condition | Tensor, steps: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(codes) of codes [B, 1, h, w] is at most this many nats, [B]; the losses by place with some numbers of
    places hidden, and those numbers, [S, B] each.

    One random order an image. With all numbers, the mean over orders is the bound itself; with `steps` of them, at even
    distances from a random first one, an image's own, it is estimated.
    """
    places = codes[0].numel()
    count = places if steps is None else min(steps, places)
    first = torch.rand(len(codes), dtype=torch.float64)  # of the distance
    numbers = ((torch.arange(count)[:, None] + first) * (places / count)).floor().long() + 1  # each equally likely
    eps = torch.randn(codes.shape, device=codes.device)
    times = (numbers - 0.5) / places  # which stand for those numbers, whatever the rounding
    losses = [objective.loss(net, codes, condition, t=t.to(codes.device), eps=eps)[0].double() for t in times]
    stacked = torch.stack(losses)
    return places * stacked.mean(0), stacked, numbers
