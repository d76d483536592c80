"""Students: networks that sample in few steps. Each says what they regress, where an `Objective` has a closed form.

What all share stays in the objective: the path, the parameterization, the weighting, the times. What differs is a class
in a file of its own (progressive, meanflow, consistency): `loss` at times that `times` has drawn. A student is sampled
by its objective's denoiser, as any network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.diffusion.guidance import with_and_without
from ldm.diffusion.objective import Net, Objective, expand, on_path
from ldm.diffusion.parameterization import Prediction
from ldm.diffusion.path import Path


class Student(Protocol):
    """What stage 2 trains where the target is in no closed form."""

    objective: Objective  # by which it is sampled
    teacher: "Teacher | None"

    @property
    def passes(self) -> tuple[float, float]:
        """Forward passes an image behind the target: of the network itself, and of the teacher."""

    def times(self, n: int, device: torch.device) -> Tensor:
        """[n, k] random numbers, of which the first are the times."""

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
        """The losses [B] and the times [B].

        net:   (x_t, t, condition) -> like x_t
        x0:    clean latents [B, C, H, W], with their condition and noise eps
        drawn: [B, k], of `times`
        batch: how many batches came before
        where: where errors count, [B, 1, H, W]; None: everywhere
        """


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network that students learn from; it is held fixed.

    null: what it is told, in one row, where nothing is said; None where it was never trained so, and can't be guided
    """

    net: nn.Module
    objective: Objective
    null: Condition | None

    def passes(self, guided: bool) -> float:
        """Forward passes behind one prediction."""
        return 2.0 if guided and not getattr(self.net, "takes_guidance", False) else 1.0

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | Tensor,
        scale: Tensor | None,
        path: Path | None = None,
    ) -> Prediction:
        """Both ends of the path through x_t [B, ...] at times t [B].

        scale: of guidance, [B]; None: unguided
        path:  on which x_t lies; None: the teacher's own
        """

        def guided(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if scale is not None and getattr(self.net, "takes_guidance", False):  # a student itself
                return self.net(x_t, t, condition._replace(w=scale.to(t)))
            if scale is None or self.null is None:
                return self.net(x_t, t, condition)
            good, worse = with_and_without(self.net, self.null, x_t, t, condition)
            return torch.lerp(worse, good, expand(scale, x_t).to(good))

        denoise = self.objective.denoiser(guided, condition)
        return (denoise if path is None else on_path(denoise, self.objective.path, path))(x_t, t)


@contextmanager
def held(net: nn.Module, device: torch.device) -> Iterator[None]:
    """A network as targets ask it: without gradients; without dropout, whose masks would differ from call to call; in
    its own precision, as differences of 8 bits are noise and forward mode knows no autocast."""
    training = net.training
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            net.eval()
            yield
    finally:
        net.train(training)


def guides(guidance: float, most: float | None) -> bool:
    """Whether a teacher is guided."""
    return (guidance, most) != (1, None)


def scales_of(guidance: float, most: float | None, n: int, device: torch.device) -> Tensor:
    """[n], float64: the scale of guidance, or scales drawn evenly from it to most."""
    share = torch.zeros(n, device=device) if most is None else torch.rand(n, device=device)
    return guidance + ((most or guidance) - guidance) * share.double()


def told(net: Net, scale: Tensor, most: float | None) -> Net:
    """The network as it is, or, where guidance has a range, told the scale."""
    if most is None:
        return net
    return lambda x_t, t, condition: net(x_t, t, condition._replace(w=scale.to(t)))


def check_range(guidance: float, most: float | None) -> None:
    """ValueError where a range of scales is none."""
    if most is not None and most <= guidance:
        raise ValueError(f"guidance_max={most:g} must be more than guidance={guidance:g}, or null")
