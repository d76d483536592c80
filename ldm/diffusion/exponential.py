"""A step of the exponential integrators in `samplers`: exact for a constant x0, whatever the path."""

import torch
from torch import Tensor

from ldm.diffusion.path import Coefficients, log_snr


class Step:
    """A step of h in log(alpha / sigma), with the x0 that is predicted at its start, and the step before it."""

    def __init__(self, now: Coefficients, then: Coefficients, data: Tensor, before: "Step | None") -> None:
        self.now, self.then, self.data = now, then, data
        self.h = 0.5 * (log_snr(then) - log_snr(now))  # infinite from alpha = 0
        self.rise: Tensor | None = None  # of x0 over a step, seen from the step before
        if before is not None:
            self.ratio = before.h / self.h
            self.rise = (data - before.data) / self.ratio

    def to(self, x: Tensor, data: Tensor) -> Tensor:
        """The exact step for a constant x0."""
        return self.then.sigma / self.now.sigma * x - self.then.alpha * torch.expm1(-self.h) * data

    def extrapolated(self) -> Tensor:
        """x0 half-way, on the line through this step's x0 and that of the step before."""
        return self.data if self.rise is None else self.data + 0.5 * self.rise

    def corrected(self, there: Tensor) -> Tensor:
        """x0 averaged over the step, with the prediction at its end: weights that make powers of h exact."""
        if self.rise is None:
            return self.data + 0.5 * (there - self.data)
        exchanged = torch.expm1(-self.h)  # phi_1(-h), times -h
        first = exchanged / -self.h - 1
        b1, b2 = first / exchanged, 2 * (first / -self.h - 0.5) / exchanged
        past = (b1 - b2) / (1 + self.ratio)
        return self.data + past * self.rise + (b1 - past) * (there - self.data)
