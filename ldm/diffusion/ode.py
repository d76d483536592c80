"""The probability-flow ODE, dx/dt = velocity(x, t), as the solvers in `samplers` walk it: the frame in which its slope
is finite, one step of each Runge-Kutta method, and the last step, down to the data.

The ODE is one and the same on every path; only the scale of x and the pace of t differ (`on_path`). That allows two
changes of frame, without which a method loses its order between noise and data:

1.  On a variance-preserving path of betas sigma rises like sqrt(t), so that dsigma/dt is infinite at t = 0, and steps
    that are even in t are coarse next to it. Such a path is walked as the cosine path, where dsigma/dt is finite: at
    equal alpha and sigma the states are the same, and the slope is v by the angle.
2.  The last step, to t = 0, is taken on the linear path, where the way from the noise to a single point is straight:
    even a step from pure noise lands on it, and Euler's step is the predicted x0. Its methods never evaluate the
    denoiser at t = 0, where eps may be 0 / 0 and no network was trained. As it is one step only, it may be of one order
    less than the others: its error, h^p, is then no more than the sum of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.objective import Denoise, on_path
from ldm.diffusion.parameterization import angle, scale, velocity
from ldm.diffusion.path import CosinePath, LinearPath, Path

Slope = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t []) -> dx/dt [B, ...]
Method = Callable[[Slope, Tensor, Tensor, Tensor], Tensor]  # (slope, x at t, t, s) -> x at s


@dataclass(frozen=True)
class Flow:
    """The ODE from x at times[0] along `times`, in the frame in which its slope is finite."""

    denoise: Denoise
    path: Path
    x: Tensor
    times: Tensor  # [N + 1], decreasing

    @classmethod
    def regular(cls, denoise: Denoise, path: Path, x: Tensor, times: Tensor) -> "Flow":
        """The flow on `path`, or on the cosine path where dsigma/dt is infinite at t = 0."""
        if path(torch.zeros_like(times[0])).dsigma.isfinite():
            return cls(denoise, path, x, times)
        cosine = CosinePath()
        return cls(on_path(denoise, path, cosine), cosine, x / scale(path(times[0])), angle(path(times)))

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt at time t []."""
        return velocity(self.path(t), self.denoise(x, t))

    def step(self, x: Tensor, t: Tensor, s: Tensor, method: Method, last: Method) -> Tensor:
        """From x at t to s: by `method`, or to the data, s = 0, by `last` on the linear path. Where the path keeps
        noise at t = 0, `method` goes there, and x0 is found by one more evaluation."""
        if s > 0:
            return method(self.slope, x, t, s)
        if self.path(s).sigma > 0:
            return self.denoise(method(self.slope, x, t, s), s).x0
        straight, c = LinearPath(), self.path(t)
        size = c.alpha + c.sigma
        flow = replace(self, denoise=on_path(self.denoise, self.path, straight), path=straight)
        return last(flow.slope, x / size, c.sigma / size, s)


def solve(flow: Flow, method: Method, last: Method) -> Tensor:
    """x at the end of the flow's times, by a Runge-Kutta method, and another one for the step to the data."""
    x = flow.x
    for t, s in pairwise(flow.times):
        x = flow.step(x, t, s, method, last)
    return x


def euler_step(slope: Slope, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Order 1."""
    return x + (s - t) * slope(x, t)


def midpoint_step(slope: Slope, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Order 2, by the slope half-way; s is not evaluated."""
    half = 0.5 * (t + s)
    return x + (s - t) * slope(euler_step(slope, x, t, half), half)


def heun_step(slope: Slope, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Order 2, by the mean of the slopes at both ends."""
    k1 = slope(x, t)
    k2 = slope(x + (s - t) * k1, s)
    return x + (s - t) * 0.5 * (k1 + k2)


def third_order_step(slope: Slope, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Order 3 (Heun 1900), by the slopes at the start and at two thirds; s is not evaluated."""
    h = s - t
    k1 = slope(x, t)
    k2 = slope(x + h / 3 * k1, t + h / 3)
    k3 = slope(x + 2 * h / 3 * k2, t + 2 * h / 3)
    return x + h / 4 * (k1 + 3 * k3)


def rk4_step(slope: Slope, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Order 4 (Kutta 1901)."""
    h, half = s - t, 0.5 * (t + s)
    k1 = slope(x, t)
    k2 = slope(x + 0.5 * h * k1, half)
    k3 = slope(x + 0.5 * h * k2, half)
    k4 = slope(x + h * k3, s)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
