"""Muon for matrices and convolutions, AdamW for all else, as one optimiser."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, as in Jordan et al. 2024
LEAST = 16  # rows and columns of what is taken for a matrix: embeddings of few classes and ends in few channels are not


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """The matrix [R, C] with singular values near 1 (0.7 to 1.2), by Newton-Schulz's iteration in quintic steps; on a
    GPU in bfloat16."""
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


class Muon(Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024), at AdamW's root mean square, 0.2 sqrt(max(R, C)) (Liu et al.
    2025), so that learning rate and weight decay are what they would be of AdamW.

    A weight of two dimensions or more is taken as [R, C], a convolution's as [out, in x kernel], where R and C are at
    least 16, and it has no attribute is_table, as an embedding's has; AdamW takes the others.

    Args:
        params:       to be trained
        lr:           learning rate
        weight_decay: decoupled, of all
        momentum:     of matrices, with Nesterov's look ahead
        betas, eps:   AdamW's
        steps:        of Newton-Schulz
        fused:        AdamW in one kernel

    Raises:
        ValueError: in a step, for weights that are sharded: each rank would need the whole matrix.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        steps: int = 5,
        fused: bool = False,
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        super().__init__(params, options | {"steps": steps, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if any(isinstance(p, DTensor) for p in trained):
                raise ValueError("optimizer._target_=ldm.training.muon.Muon wants whole matrices: trainer.strategy=ddp")
            for p in trained:
                if is_matrix(p):
                    self._orthogonal_step(p, group)
            self._adamw_step([p for p in trained if not is_matrix(p)], group)
        return loss

    def _orthogonal_step(self, p: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        average = state.setdefault("momentum", torch.zeros_like(p))
        average.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"]).flatten(1)
        update = orthogonalized(ahead, group["steps"]).view_as(p)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(ahead.shape)))

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] |= {"step": torch.zeros((), device=p.device if group["fused"] else "cpu")}
                self.state[p] |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        held = {name: [self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")}
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            held["exp_avg"],
            held["exp_avg_sq"],
            [],
            held["step"],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter is a matrix for Muon."""
    return p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= LEAST and not getattr(p, "is_table", False)
