"""Progressive distillation: a student that halves its teacher's steps."""

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.diffusion.objective import Objective, coefficients, expand
from ldm.diffusion.parameterization import Prediction
from ldm.diffusion.path import Coefficients, Path
from ldm.diffusion.student import Teacher, check_range, guides, scales_of, told
from ldm.runtime.ranges import Count, NonNegative, checked


class Progressive:
    """Two of the teacher's DDIM steps in one (Salimans & Ho 2022, algorithm 2).

    The student's step from t to t - 1/N, a whole number of N-ths, is to end where the teacher's two steps of half that
    length end; of the path through x_t and that state, the student regresses what the teacher did of its own.

    Args:
        objective:    the teacher's, but for the weighting
        teacher:      on the same path, with the same parameterization
        steps:        N, of the student; the teacher takes 2 N
        guidance:     of the teacher, by which the student is then guided without a second network (Meng et al. 2023)
        guidance_max: the scale is drawn from guidance up to this, and is a condition w that the student takes; None: it
                      is guidance alone
    """

    @checked
    def __init__(
        self,
        *,
        objective: Objective,
        teacher: Teacher,
        steps: Count,
        guidance: NonNegative = 1.0,
        guidance_max: NonNegative | None = None,
    ) -> None:
        check_range(guidance, guidance_max)
        self.objective, self.teacher, self.steps = objective, teacher, steps
        self.guidance, self.guidance_max = guidance, guidance_max

    @property
    def passes(self) -> tuple[float, float]:
        return 0.0, 2 * self.teacher.passes(guides(self.guidance, self.guidance_max))

    def times(self, n: int, device: torch.device) -> Tensor:
        """[n, 2]: a multiple of 1/N, and the scale of guidance."""
        t = torch.randint(1, self.steps + 1, (n,), device=device).double() / self.steps
        return torch.stack([t, scales_of(self.guidance, self.guidance_max, n, device)], dim=1)

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
        t, scale = drawn.unbind(1)
        now = coefficients(self.objective.path, t, x0)
        x_t = now.alpha * x0 + now.sigma * eps
        x0, eps = self.target(x_t, t, condition, scale if guides(self.guidance, self.guidance_max) else None)
        return self.objective.loss(
            told(net, scale, self.guidance_max), x0, condition, t=t.to(x_t.dtype), eps=eps, where=where
        )

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor, scale: Tensor | None) -> Prediction:
        """The ends of the path through x_t, at times t [B], and the state that the teacher's two steps reach."""
        path, x, half = self.objective.path, x_t, 0.5 / self.steps
        for start, stop in ((t, t - half), (t - half, t - 2 * half)):
            prediction = self.teacher.predict(x, start, condition, scale)
            then = _landing(path, stop, x)
            x = then.alpha * prediction.x0 + then.sigma * prediction.eps
        now = coefficients(path, t, x)
        ratio = then.sigma / now.sigma
        x0 = (x - ratio * x_t) / (then.alpha - ratio * now.alpha)
        return Prediction(x0, (x_t - now.alpha * x0) / now.sigma)


def _landing(path: Path, s: Tensor, like: Tensor) -> Coefficients:
    """Likewise, but at s = 0 the data, where samplers land whatever noise a path keeps."""
    c, ends = coefficients(path, s, like), expand(s < 1e-9, like)
    return Coefficients(torch.where(ends, 1.0, c.alpha), torch.where(ends, 0.0, c.sigma), c.dalpha, c.dsigma)
