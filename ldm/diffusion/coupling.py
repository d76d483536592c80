"""Which noise belongs to which latent: independent pairs, or those of a minibatch optimal transport.

A coupling permutes the noise and leaves the data, so that labels stay with their latents. It assigns class by class:
within a class the noise stays standard normal whatever the permutation; across classes the noise alone would tell the
label, which sampling does not know (the usual error of conditional OT-CFM).
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from ldm.runtime.ranges import Count, Positive, checked


class Coupling(Protocol):
    """(x0 [B, ...], eps [B, ...], y [B]) -> eps, permuted.

    `ahead` says where: in the workers that load data, before the step and while another one runs; or in the step.
    """

    @property
    def ahead(self) -> bool: ...

    def __call__(self, x0: Tensor, eps: Tensor, y: Tensor) -> Tensor: ...


class Independent:
    """Leaves the pairs as they were drawn."""

    ahead = False

    def __call__(self, x0: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        return eps


class Taught(Independent):
    """The noise that a teacher has made each latent of: cached pairs bring it (Reflow, Liu et al. 2023)."""

    ahead = True


class OptimalTransport:
    """The permutation that makes the batch's squared distances, class by class, least (Tong et al. 2024; Pooladian et
    al. 2023): straighter paths, and a gradient of less variance.

    Args:
        solver:         "exact" is scipy's assignment, on the CPU; "sinkhorn" stays on the device: an entropic plan,
                        rounded to a permutation greedily
        regularization: of sinkhorn, relative to the mean cost
        iterations:     of sinkhorn
    """

    @checked
    def __init__(
        self,
        *,
        solver: Literal["exact", "sinkhorn"] = "exact",
        regularization: Positive = 0.02,
        iterations: Count = 100,
    ) -> None:
        self.solver, self.regularization, self.iterations = solver, regularization, iterations

    @property
    def ahead(self) -> bool:
        return self.solver == "exact"

    def __call__(self, x0: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        source = torch.arange(len(y), device=y.device)
        for label in torch.unique(y).tolist():
            members = (y == label).nonzero()[:, 0]
            cost = squared_distances(x0[members], eps[members])
            if self.solver == "exact":
                source[members] = members[exact_assignment(cost)]
            else:
                plan = sinkhorn_plan(cost, self.regularization, self.iterations)
                source[members] = members[greedy_assignment(plan)]
        return eps[source]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 for [N, ...] and [N, ...]: [N, N], without the differences themselves."""
    x, y = x.flatten(1), y.flatten(1)
    return x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T


def exact_assignment(cost: Tensor) -> Tensor:
    """The column of each row that makes the sum of cost [N, N] least: [N]."""
    from scipy.optimize import linear_sum_assignment  # which takes a second to import

    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=cost.device)


def sinkhorn_plan(cost: Tensor, regularization: float, iterations: int) -> Tensor:
    """The plan [N, N] with uniform margins that minimises <plan, cost> - regularization mean(cost) H(plan) (Cuturi
    2013), by iterations in the log domain."""
    kernel = -cost / (regularization * cost.mean())
    rows = columns = kernel.new_zeros(len(cost))
    for _ in range(iterations):
        rows = -torch.logsumexp(kernel + columns, dim=1)
        columns = -torch.logsumexp(kernel + rows[:, None], dim=0)
    return torch.exp(kernel + rows[:, None] + columns) / len(cost)


def greedy_assignment(plan: Tensor) -> Tensor:
    """The permutation that takes a plan's largest entries one after another: the column of each row, [N]."""
    n, left = len(plan), plan.clone()
    chosen = torch.empty(n, dtype=torch.long, device=plan.device)
    for _ in range(n):
        at = left.argmax()[None]
        row, column = at // n, at % n  # [1] each: they stay on the device, so that the host does not wait for them
        chosen.index_copy_(0, row, column)
        left.index_fill_(0, row, -1.0).index_fill_(1, column, -1.0)
    return chosen
