"""MeanFlow: a student of the average velocity, which one evaluation walks from noise to data."""

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.diffusion.derivative import Derivative, along
from ldm.diffusion.guidance import with_and_without
from ldm.diffusion.objective import Objective, expand, mean_square
from ldm.diffusion.student import held
from ldm.runtime.ranges import NonNegative, Share, checked


class MeanFlow:
    """The average velocity from s to t, by the identity u = dx/dt - (t - s) du/dt (Geng et al. 2025, eq. 6-11).

    du/dt is the network's own derivative along (dx/dt, 1), held fixed. One evaluation then makes a sample.

    Args:
        objective:  with average=true
        same:       share of samples with s = t, where the target is the velocity itself
        guidance:   of the velocity that is averaged: 1 is none (their appendix B.1)
        null:       what the network is told, in one row, where nothing is said; for guidance alone
        mix:        their kappa: the share of that in which the network's own labelled velocity stands for the sample's,
                    which varies less
        derivative: see `ldm.diffusion.derivative`
    """

    teacher = None

    @checked
    def __init__(
        self,
        *,
        objective: Objective,
        null: Condition | None = None,
        same: Share = 0.75,
        guidance: NonNegative = 1.0,
        mix: Share = 0.0,
        derivative: Derivative = "exact",
    ) -> None:
        if not objective.average:
            raise ValueError("MeanFlow learns averages: pass objective.average=true")
        if mix == 1:
            raise ValueError("mix=1 would leave nothing of the data in the target: pass less")
        if guidance != 1 and null is None:
            raise ValueError(f"guidance={guidance:g} wants null=, what the network is told where nothing is said")
        self.null = null
        self.objective, self.same, self.guidance, self.mix = objective, same, guidance, mix
        self.derivative: Derivative = derivative

    @property
    def passes(self) -> tuple[float, float]:
        derivative = 3 if self.derivative == "exact" else 2
        own = 2 if self.guidance != 1 else 1 if self.mix > 0 else 0
        return derivative * (1 - self.same) + own, 0.0

    def times(self, n: int, device: torch.device) -> Tensor:
        """[n, 2]: t and s, of the objective's times the later and the earlier, or the same twice."""
        first, second = (self.objective.time_sampler(n, self.objective.path, device) for _ in range(2))
        same = torch.rand(n, device=device) < self.same
        t = torch.where(same, first, torch.maximum(first, second))
        return torch.stack([t, torch.where(same, first, torch.minimum(first, second))], dim=1)

    def loss(
        self,
        net: nn.Module,
        x0: Tensor,
        condition: Condition | Tensor,
        *,
        drawn: Tensor,
        eps: Tensor,
        batch: int,
        where: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        (t, s), condition = drawn.unbind(1), Condition.of(condition)
        c = self.objective.path(expand(t, x0))
        x_t, velocity = c.alpha * x0 + c.sigma * eps, c.dalpha * x0 + c.dsigma * eps
        with held(net, x0.device):
            target = self.target(net, x_t, self._guided(net, x_t, t, condition, velocity), t, s, condition)
        seen, time = self.objective.input(c, x_t, t)
        error = net(seen, time, condition._replace(s=s.to(time))) - target
        return self.objective.weighted(mean_square(error, where), c), t

    def target(
        self, net: nn.Module, x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor, condition: Condition | Tensor
    ) -> Tensor:
        """velocity - (t - s) du/dt, [B, ...]; where s = t the velocity to the bit, and nothing is differentiated."""
        apart = (s < t).nonzero().flatten()
        if len(apart) == 0:
            return velocity
        told = Condition.of(condition).rows(apart)._replace(s=s[apart])

        def average(x_t: Tensor, t: Tensor) -> Tensor:
            return net(x_t, t, told)

        slope = along(average, x_t[apart], t[apart], velocity[apart], torch.ones_like(s[apart]), self.derivative)
        return velocity.index_add(0, apart, -expand(t - s, velocity)[apart] * slope.to(velocity.dtype))

    def _guided(self, net: nn.Module, x_t: Tensor, t: Tensor, condition: Condition, velocity: Tensor) -> Tensor:
        """The velocity that is averaged: guided, where a condition is there."""
        condition = condition._replace(s=t)
        if self.null is None or self.guidance == 1:
            return velocity if self.mix == 0 else torch.lerp(velocity, net(x_t, t, condition).to(velocity), self.mix)
        told, free = with_and_without(net, self.null, x_t, t, condition)
        own = self.guidance * (1 - self.mix)  # their omega, of which guidance = omega / (1 - kappa)
        guided = own * velocity + self.mix * told + (1 - own - self.mix) * free
        dropped = condition.says_nothing(self.null)
        return torch.where(expand(dropped, velocity), velocity, guided.to(velocity.dtype))
