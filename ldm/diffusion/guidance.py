"""Guidance: dropping labels in training, extrapolating away from a worse prediction in sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.objective import Net


def drop_labels(y: Tensor, probability: float, null_class: int, uniform: Tensor | None = None) -> Tensor:
    """Replace each label of y [B] by the null class with the given probability: where uniform [B] lies below it."""
    uniform = torch.rand(y.shape, device=y.device) if uniform is None else uniform
    return torch.where(uniform < probability, null_class, y)


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
        weak:     the worse prediction. None = the network itself without the label (Ho & Salimans 2022, eq. 6), both
                  branches in one batched call; another network, trained less or smaller, with the same label, is
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

    def __call__(self, net: Net, null_class: int) -> Net:
        """The guided network."""
        if self.scale == 1.0:
            return net

        def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
            if self.interval != (0.0, 1.0) and not self._acts(float(t[0])):  # a batch is at one time
                return net(x_t, t, y)
            if self.weak is not None:
                good, worse = net(x_t, t, y), self.weak(x_t, t, y)
            else:
                labels = torch.cat([y, torch.full_like(y, null_class)])
                good, worse = net(torch.cat([x_t, x_t]), torch.cat([t, t]), labels).chunk(2)
            output = torch.lerp(worse, good, self.scale)
            if self.rescale > 0:
                ratio = _std(good) / _std(output)
                output = output * (1 - self.rescale + self.rescale * ratio)
            return output

        return guided


def _std(x: Tensor) -> Tensor:
    """The standard deviation of each sample of x [B, C, H, W]: [B, 1, 1, 1]."""
    return x.std(dim=tuple(range(1, x.dim())), keepdim=True)
