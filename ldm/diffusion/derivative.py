"""The derivative of a network along a direction in (x_t, t), which the targets of MeanFlow and of consistency need."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.diffusion.objective import expand
from ldm.runtime.ranges import Positive

Derivative = Literal["exact"] | Positive


Function = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> [B, ...]


@torch.no_grad()
def value_along(
    function: Function, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, method: Derivative
) -> tuple[Tensor, Tensor]:
    """function(x, t), and `along`."""
    if method == "exact":
        return _jvp(function, x, t, dx, dt)
    return function(x, t), along(function, x, t, dx, dt, method)


@torch.no_grad()
def along(function: Function, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, method: Derivative) -> Tensor:
    """The derivative of a function along (dx, dt), [B, ...], without gradients by parameters.

    Args:
        function: of x and t
        x, t:     where
        dx, dt:   the direction, of their shapes; dt is not negative
        method:   "exact" is forward-mode differentiation, in which attention is computed plainly, as its fused kernels
                  have no forward mode; a number h is the central difference (f(z + h d) - f(z - h d)) / 2 h, for
                  networks that cannot be differentiated so (compiled or sharded ones), and for those that ripple in
                  time: it is the mean of the derivative between t - h dt and t + h dt, as far as these lie in [0, 1],
                  beyond which no network is trained
    """
    if method == "exact":
        return _jvp(function, x, t, dx, dt)[1]
    up, down = (torch.clamp(room / dt.clamp(min=1e-12), 0, method) for room in (1 - t, t))
    higher, lower = (function(x + expand(h, x) * dx, t + h * dt) for h in (up, -down))
    return (higher - lower) / expand(up + down, x)


def _jvp(function: Function, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    _load_forward_mode()
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, (x, t), (dx, dt))  # type: ignore[return-value]


@cache
def _load_forward_mode() -> None:
    """At its first use torch compiles rules by torch.jit.script, which it calls deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
