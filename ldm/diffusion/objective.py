"""Objective: path x parameterization x weighting x time sampler. Its loss and its denoiser stand side by side, so that
training and sampling cannot drift apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.coupling import Coupling, Independent
from ldm.diffusion.parameterization import (
    PARAMETERIZATIONS,
    Parameterization,
    Prediction,
    angle,
    determinant,
    scale,
    secants,
    solve,
    target_coefficients,
)
from ldm.diffusion.path import Coefficients, Path, log_snr, time_at
from ldm.diffusion.times import TimeSampler
from ldm.diffusion.weighting import Weighting

Net = Callable[..., Tensor]  # (x_t [B,C,H,W], t [B], condition) -> [B,C,H,W]


class Denoise(Protocol):
    """(x_t [B,C,H,W], t) -> Prediction: the two ends of the path through x_t.

    Times are [] or [B]. With a second time s, the ends of a path through x_t and the state at s, where a network has
    learned to say that (`Objective.average`); others disregard it.
    """

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Prediction: ...


def expand(t: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to broadcast over `like`; [] stays."""
    return t.reshape(-1, *[1] * (like.dim() - 1)) if t.dim() else t


def coefficients(path: Path, t: Tensor, like: Tensor) -> Coefficients:
    """The path at times [] or [B], to be multiplied by `like`; computed in the times' own type."""
    c = path(expand(t, like))
    return Coefficients(*(value.to(like.dtype) for value in c)) if t.dim() else c


def mean_square(error: Tensor, where: Tensor | None) -> Tensor:
    """The mean square of each sample of error [B, C, H, W], [B]; of the places that `where` [B, 1, H, W] weighs."""
    square = error.square()
    if where is None:
        return square.flatten(1).mean(1)
    weight = where.to(error.dtype).expand_as(error).flatten(1)
    return (square.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1)


def multiscale_square(error: Tensor, where: Tensor | None, scales: int) -> Tensor:
    """sum_k 2^k of the mean squares at 1 / 2^k of the resolution, k < scales: simple diffusion's sum of 1 / side
    (Hoogeboom et al. 2023, section 3.2), times the full side; one scale is `mean_square`.

    Raises:
        ValueError: if a side can't be halved so often.
    """
    total = mean_square(error, where)
    for k in range(1, scales):
        if error.shape[-1] % 2 or error.shape[-2] % 2:
            sides = " x ".join(str(side * 2 ** (k - 1)) for side in error.shape[-2:])
            raise ValueError(f"objective.scales={scales} halves latents of {sides} too often: at most {k} scales")
        error = F.avg_pool2d(error, 2)
        where = None if where is None else F.avg_pool2d(where.to(error.dtype), 2)
        total = total + 2**k * mean_square(error, where)
    return total


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learned, and how to read it back.

    Args:
        path:             from data to noise
        parameterization: what the network regresses: x0, eps, v or velocity
        weighting:        from the network's mean square error to the loss
        time_sampler:     draws the times at which it is trained
        coupling:         which noise belongs to which latent of a batch
        unit_input:       whether the network sees x_t / sqrt(alpha^2 + sigma^2) and the angle
                          (2 / pi) atan(sigma / alpha) in place of x_t and t: EDM's c_in and a bounded c_noise, for
                          paths that do not preserve variance
        average:          whether the network takes a second time s <= t, and then regresses the average velocity from s
                          to t (Geng et al. 2025, eq. 3), (x_t - x_s) / (t - s), whose limit is the velocity
        scales:           resolutions at which errors count, each half the one before: see `multiscale_square`
    """

    path: Path
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler
    coupling: Coupling = field(default_factory=Independent)
    unit_input: bool = False
    average: bool = False
    scales: int = 1

    def __post_init__(self) -> None:
        if self.parameterization not in PARAMETERIZATIONS:
            known = ", ".join(PARAMETERIZATIONS)
            raise ValueError(f"parameterization={self.parameterization} must be one of {known}")
        if not 1 <= self.scales <= 12:
            raise ValueError(f"scales={self.scales} must lie in 1 ... 12")
        if self.average and self.scales > 1:
            raise ValueError("scales= is of objectives in closed form, not of average=true: leave it 1")
        if self.average and (self.parameterization != "velocity" or self.unit_input):
            raise ValueError("average=true is of velocities: pass parameterization=velocity and unit_input=false")
        c = self.path(torch.ones((), dtype=torch.float64))
        if determinant(c, *target_coefficients(c, self.parameterization)).abs() < 1e-6:
            raise ValueError(
                f"parameterization={self.parameterization} can't tell x0 at t = 1 on a path that ends at alpha = 0: "
                "use v, velocity or x0"
            )

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
        """Weighted mean square of the network's error at random times, [B], and those times, [B].

        Args:
            net:       (x_t, t, condition) -> like x_t
            x0:        clean latents, [B, C, H, W]
            condition: what the network is told; labels [B] alone may stand for it
            t:         times, [B]; None = drawn from the global generator
            eps:       noise that is paired with x0 already, like x0; None = drawn likewise, then paired
            where:     where errors count, [B, 1, H, W]; None = everywhere
        """
        t, condition = self.times(len(x0), x0.device) if t is None else t, Condition.of(condition)
        eps = self.coupling(x0, torch.randn_like(x0), condition.label) if eps is None else eps  # [B, C, H, W]
        c = self.path(expand(t, x0))  # [B, 1, 1, 1] each
        a, b = target_coefficients(c, self.parameterization)
        output = net(*self.input(c, c.alpha * x0 + c.sigma * eps, t), condition)
        return self.weighted(multiscale_square(output - (a * x0 + b * eps), where, self.scales), c), t

    def weighted(self, error: Tensor, c: Coefficients) -> Tensor:
        """The loss of the mean square errors [B] of what is regressed, where the path is c, [B, 1, 1, 1] each."""
        determined = determinant(c, *target_coefficients(c, self.parameterization))
        snr, gain = (c.alpha / c.sigma) ** 2, (c.sigma / determined) ** 2
        return self.weighting(error, snr.flatten(), gain.flatten())

    def times(self, n: int, device: torch.device) -> Tensor:
        """[n] times at which it is trained."""
        return self.time_sampler(n, self.path, device)

    @property
    def of_codes(self) -> bool:
        """Whether it is of codes, long [B, 1, h, w], and not of latents."""
        return False

    def check_states(self, x: Tensor) -> None:
        """ValueError unless x are such states."""
        if not x.is_floating_point():
            raise ValueError(f"latents are of a float type, [B, C, h, w], not {x.dtype} {list(x.shape)}")

    def blank(self, shape: Sequence[int]) -> Tensor:
        """A state of this shape, [B, C, h, w], of which nothing is known: noise, the same each time."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))

    def silent(self, x_t: Tensor) -> Tensor:
        """What a network returns that says nothing."""
        return torch.zeros_like(x_t)

    def nothing(self, x_t: Tensor) -> Prediction:
        """A denoiser's, that says nothing."""
        return Prediction(torch.zeros_like(x_t), x_t)

    def check_sampler(self, function: Callable[..., Tensor]) -> None:
        """ValueError for a sampler of other states than these."""
        if samples_codes(function) and not self.of_codes:
            raise ValueError("sampler=ardm makes codes, and this model makes latents: pass another")
        if self.of_codes and not samples_codes(function):
            raise ValueError(
                "sampler= walks latents, and this model makes codes: pass sampler=ardm, or sampler=trained"
            )

    def denoiser(self, net: Net, condition: Condition | Tensor) -> Denoise:
        """Wrap `net`, told a condition of B rows or labels [B], as (x_t, t) -> Prediction(x0, eps)."""

        condition = Condition.of(condition)

        def denoise(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Prediction:
            c = coefficients(self.path, t, x_t)
            seen, time = self.input(c, x_t, t.expand(len(x_t)))
            if s is None or not self.average:
                return solve(c, *target_coefficients(c, self.parameterization), x_t, net(seen, time, condition))
            a, b = secants(c, coefficients(self.path, s, x_t), expand(t - s, x_t))
            told = condition._replace(s=s.expand(len(x_t)).to(time))
            return solve(c, a, b, x_t, net(seen, time, told))

        return denoise

    def input(self, c: Coefficients, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees: the state, and the time [B]."""
        if self.unit_input:
            x_t, t = x_t / scale(c), angle(c).flatten().expand(len(x_t))
        dtype = torch.promote_types(x_t.dtype, torch.float32)  # bfloat16's 8 bits do not tell 1000 times apart
        return x_t, t.to(x_t.device, dtype)


def samples_codes(function: Callable[..., Tensor]) -> bool:
    """Whether a sampler, with options bound to it or not, has the attribute of_codes: it reveals codes."""
    return bool(getattr(getattr(function, "func", function), "of_codes", False))


def on_path(denoise: Denoise, trained: Path, path: Path) -> Denoise:
    """A denoiser of the path `trained` as one of another: at the time with the same log-SNR, where the state differs by
    a factor only (Karras et al. 2022, section 3 and appendix C)."""

    def remapped(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Prediction:
        there = time_at(trained, log_snr(path(t)))
        grow = scale(trained(there)) / scale(path(t))
        x_t = x_t * expand(grow, x_t).to(x_t.dtype)
        return denoise(x_t, there) if s is None else denoise(x_t, there, time_at(trained, log_snr(path(s))))

    return remapped
