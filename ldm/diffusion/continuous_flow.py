"""Continuous normalising flows trained by maximum likelihood: what flow matching spares (Chen et al. 2018).

The same network v(x, t) that flow matching regresses can be trained to make the data likely,

    -log p(x0) = -log N(x(1); 0, 1) - integral_0^1 div v dt,   dx/dt = v(x, t),   x(0) = x0,

which walks the whole way in every step. The adjoint (section 2) walks it back instead of keeping it: its memory does
not grow with the evaluations, its time does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from ldm.runtime.ranges import Positive, checked

Field = Callable[[Tensor, Tensor], Tensor]  # x [B, ...], t [B] -> dx/dt [B, ...]


class _Slope(nn.Module):
    """d(x, integral of the divergence) / dt, which gradients can be taken of; exact, one backward pass a dimension."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field, self.evaluations = field, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        (x, _), kept = state, torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = self.field(x, t.to(x).expand(len(x)))
            diagonal = [
                torch.autograd.grad(v.flatten(1)[:, k].sum(), x, create_graph=True)[0].flatten(1)[:, k]
                for k in range(x[0].numel())
            ]
            divergence = torch.stack(diagonal).sum(0)
        return (v, divergence) if kept else (v.detach(), divergence.detach())


@checked
def negative_log_likelihood(
    field: nn.Module, x0: Tensor, *, adjoint: bool, rtol: Positive = 1e-4, atol: Positive = 1e-4
) -> tuple[Tensor, Callable[[], int]]:
    """-log p(x0) in nats, [B], of x0 [B, ...], and how often the field has been evaluated by now, backward passes
    included.

    Args:
        field:   v(x, t)
        adjoint: gradients by the adjoint equation, walked back; else by differentiating the solver's own steps
        rtol:    of dopri5: relative error a step
        atol:    of dopri5: absolute error a step
    """
    slope = _Slope(field)
    solve: Any = odeint_adjoint if adjoint else odeint
    times = torch.tensor([0.0, 1.0], dtype=x0.dtype, device=x0.device)
    states, volumes = solve(slope, (x0, x0.new_zeros(len(x0))), times, rtol=rtol, atol=atol, method="dopri5")
    x1 = states[-1].flatten(1)
    prior = -0.5 * (x1.square().sum(1) + x1.shape[1] * math.log(2 * math.pi))
    return -(prior + volumes[-1]), lambda: slope.evaluations
