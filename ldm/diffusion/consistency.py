"""Consistency in continuous time: a student of where the ODE ends."""

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.diffusion.derivative import Derivative, value_along
from ldm.diffusion.objective import Net, Objective, expand, mean_square
from ldm.diffusion.parameterization import velocity
from ldm.diffusion.path import CosinePath
from ldm.diffusion.student import Teacher, check_range, guides, held, scales_of, told
from ldm.runtime.ranges import Count, NonNegative, Positive, checked


class Consistency:
    """The data that the probability-flow ODE reaches from x_t, by its derivative along the ODE in continuous time (sCM:
    Lu & Song 2025, algorithm 1), on the cosine path, of which t is the angle, and with v.

        f = cos x_t - sin F,   cos df = -cos^2 (F - dx) - r sin cos (x_t + dF)

    f is the consistency function, F the network, d the derivative by the angle along the ODE. F regresses itself plus
    the normalised tangent.

    Args:
        objective:  on the cosine path, parameterization v
        teacher:    whose velocity is the ODE's (distillation); None: the sample's own v (training)
        guidance:   of the teacher
        guidance_max: as of `Progressive`
        warmup:     batches in which r rises from 0 to 1
        floor:      their c: the tangent g, of root mean square |g|, becomes g / (|g| + c)
        derivative: see `ldm.diffusion.derivative`
    """

    @checked
    def __init__(
        self,
        *,
        objective: Objective,
        teacher: Teacher | None = None,
        guidance: NonNegative = 1.0,
        guidance_max: NonNegative | None = None,
        warmup: Count = 1000,
        floor: Positive = 0.1,
        derivative: Derivative = "exact",
    ) -> None:
        if not isinstance(objective.path, CosinePath) or objective.parameterization != "v":
            raise ValueError("consistency is learned on the cosine path with parameterization=v, as in conf/objective")
        check_range(guidance, guidance_max)
        if teacher is None and guides(guidance, guidance_max):
            raise ValueError("objective.student.guidance is the teacher's: pass teacher=, or leave it 1")
        self.objective, self.teacher = objective, teacher
        self.guidance, self.guidance_max = guidance, guidance_max
        self.warmup, self.floor = warmup, floor
        self.derivative: Derivative = derivative

    @property
    def passes(self) -> tuple[float, float]:
        guided = guides(self.guidance, self.guidance_max)
        return 3.0, 0.0 if self.teacher is None else self.teacher.passes(
            guided
        )  # the value and its derivative, exact or not

    def times(self, n: int, device: torch.device) -> Tensor:
        """[n, 2]: t and the scale of guidance."""
        t = self.objective.time_sampler(n, self.objective.path, device)
        return torch.stack([t, scales_of(self.guidance, self.guidance_max, n, device).to(t)], dim=1)

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
        (t, scale), condition = drawn.unbind(1), Condition.of(condition)
        c = self.objective.path(expand(t, x0))
        x_t = c.alpha * x0 + c.sigma * eps
        net_told = told(net, scale, self.guidance_max)
        slope = c.alpha * eps - c.sigma * x0 if self.teacher is None else self._taught(x_t, t, condition, scale)
        with held(net, x0.device):
            value, tangent = self.tangent(net_told, x_t, slope, t, condition, min(1.0, batch / self.warmup))
        tangent = tangent / (expand(mean_square(tangent, where).sqrt(), tangent) + self.floor)
        output = net_told(*self.objective.input(c, x_t, t), condition)
        return self.objective.weighted(mean_square(output - value - tangent, where), c), t

    def tangent(
        self, net: Net, x_t: Tensor, slope: Tensor, t: Tensor, condition: Condition | Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """F and cos df before it is normalised, [B, ...]; slope is dx by the angle, share is r."""
        c = self.objective.path(expand(t, x_t))
        by_angle = torch.full_like(t, 2 / torch.pi)  # dt by the angle
        method: Derivative = "exact" if self.derivative == "exact" else self.derivative * torch.pi / 2
        value, derivative = value_along(lambda x_t, t: net(x_t, t, condition), x_t, t, slope, by_angle, method)
        value, derivative = value.to(x_t.dtype), derivative.to(x_t.dtype)
        return value, -(c.alpha**2) * (value - slope) - share * c.alpha * c.sigma * (x_t + derivative)

    @torch.no_grad()
    def _taught(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor, scale: Tensor) -> Tensor:
        assert self.teacher is not None
        path = self.objective.path
        guided = guides(self.guidance, self.guidance_max)
        prediction = self.teacher.predict(x_t, t, condition, scale if guided else None, path)
        return velocity(path(expand(t, x_t)), prediction) * (2 / torch.pi)
