"""Guidance: extrapolating away from a worse prediction, as that without the condition."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.objective import Net


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """worse + scale (net - worse), over all channels of the network's output.

    Guiding the output is the same as guiding x0 and eps, because both are affine in it at a given x_t and t. Only
    rescale depends on what the network's output is, since it compares standard deviations of outputs.

    Args:
        scale:    1 is unguided
        interval: times between which guidance acts (Kynkaanniemi et al. 2024), as the network sees them: t, or the
                  angle where the objective has unit_input; outside, the network is evaluated alone
        rescale:  share of the way to an output with the unguided one's standard deviation, sample by sample (Lin et al.
                  2024, section 3.4)
        weak:     the worse prediction. None = the network itself without the condition (Ho & Salimans 2022, eq. 6),
                  both branches in one batched call; another network, trained less or smaller, told the same, is
                  autoguidance (Karras et al. 2024)
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    weak: Net | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"guidance={self.scale} must be a finite number of at least 0; 1 is unguided")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval={list(self.interval)} must be two times, 0 <= low <= high <= 1")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale={self.rescale} must lie in [0, 1]")

    def _acts(self, t: float) -> bool:
        low, high = self.interval
        return low - 1e-6 <= t <= high + 1e-6  # t was rounded to float32

    def __call__(self, net: Net, null: Condition) -> Net:
        """The guided network; null is what it is told, in one row, where nothing is said."""
        if getattr(net, "takes_guidance", False):
            return self._told(net)
        if self.scale == 1.0:
            return net

        def guided(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if self.interval != (0.0, 1.0) and not self._acts(float(t[0])):  # a batch is at one time
                return net(x_t, t, condition)
            if self.weak is not None:
                good, worse = net(x_t, t, condition), self.weak(x_t, t, condition)
            else:
                good, worse = with_and_without(net, null, x_t, t, condition)
            output = torch.lerp(worse, good, self.scale)
            if self.rescale > 0:
                ratio = _std(good) / _std(output)
                output = output * (1 - self.rescale + self.rescale * ratio)
            return output

        return guided

    def _told(self, net: Net) -> Net:
        """A network that takes the scale as a condition, and was trained to be guided by it (Meng et al. 2023)."""
        if (self.interval, self.rescale, self.weak) != ((0.0, 1.0), 0.0, None):
            raise ValueError(
                "this student takes guidance= as a condition, in which there is no guidance_interval=, "
                "guidance_rescale= or weak=: leave them out"
            )

        def told(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return net(x_t, t, Condition.of(condition)._replace(w=torch.full_like(t, self.scale)))

        return told


def with_and_without(
    net: Net, null: Condition, x_t: Tensor, t: Tensor, condition: Condition | Tensor
) -> tuple[Tensor, Tensor]:
    """A network's outputs with the condition and without it, in one batched call."""
    condition = Condition.of(condition)
    both = condition.beside(condition.unsaid(null))
    good, worse = net(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
    return good, worse


def _std(x: Tensor) -> Tensor:
    """The standard deviation of each sample of x [B, C, H, W]: [B, 1, 1, 1]."""
    return x.std(dim=tuple(range(1, x.dim())), keepdim=True)
