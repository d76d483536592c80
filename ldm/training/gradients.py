"""Between backward pass and optimiser step: gradients are averaged over the ranks and clipped, bad steps skipped."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated

import torch
import torch.distributed as dist
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ldm.runtime.ranges import Count, Positive, checked
from ldm.training.sharding import sharded_parts

log = logging.getLogger(__name__)

SETTLE = 100  # steps before a norm can be called a spike
DECAY = 0.99  # of the running mean that a spike is measured against


class DivergenceError(RuntimeError):
    """Training cannot recover by itself: steps were skipped again and again, or the discriminator collapsed.

    `memory`: batches for which it may have been going wrong before that was noticed.
    """

    def __init__(self, what: str, memory: int) -> None:
        super().__init__(what)
        self.memory = memory


@contextmanager
def without_sync(model: nn.Module | None) -> Iterator[None]:
    """Leave the gradients of each backward pass on their rank, under DDP and FSDP: a later pass, or `average`, sends
    them all."""
    sharded = [] if model is None else sharded_parts(model)
    for part in sharded:
        part.set_requires_gradient_sync(False, recurse=False)
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            yield
    finally:
        for part in sharded:
            part.set_requires_gradient_sync(True, recurse=False)


def average(gradients: list[Tensor]) -> None:
    """Replace gradients by their mean over the ranks, in place and in one message a type."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    for dtype in {gradient.dtype for gradient in gradients}:
        group = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in group])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(group, torch.split(flat, [g.numel() for g in group]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class StepGuard(nn.Module):
    """Averages, measures and clips gradients; refuses a step whose gradients are not finite or jump.

    Args:
        clip: largest norm of all gradients together; null does not clip.
        spike: skip a step whose norm exceeds this many times the running mean (after 100 steps); null allows all.
        patience: skipped steps in a row after which training stops.
    """

    @checked
    def __init__(self, *, clip: Positive | None, spike: Annotated[float, Gt(1)] | None, patience: Count) -> None:
        super().__init__()
        self.clip, self.spike, self.patience = clip, spike, patience
        self.register_buffer("usual", torch.zeros((), dtype=torch.float64))  # running mean of the norm
        self.register_buffer("counts", torch.zeros(3, dtype=torch.long))  # steps taken, skipped, skipped in a row
        self.usual: Tensor
        self.counts: Tensor

    def allows(self, parameters: Iterable[Tensor], scale: float) -> tuple[bool, dict[str, float]]:
        """Whether to take the step, and what to log: the norm before clipping, and the steps skipped so far.

        `scale` is what fp16's scaler has multiplied the gradients with; the threshold is scaled likewise.

        Raises:
            DivergenceError: after `patience` skipped steps in a row.
        """
        trained = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in trained if p.grad is not None]
        average(gradients)
        return self.judge(trained, get_total_norm(gradients), scale)

    def judge(self, trained: list[Tensor], total: Tensor, scale: float) -> tuple[bool, dict[str, float]]:
        """The same for gradients that are averaged already, of this total norm."""
        norm = float(total) / scale
        taken, skipped, in_a_row = self.counts.tolist()
        finite = norm < float("inf")  # false for NaN, too
        spikes = self.spike is not None and taken >= SETTLE and norm > self.spike * float(self.usual)
        if finite and not spikes:
            self.usual.lerp_(torch.tensor(norm).to(self.usual), max(1 - DECAY, 1 / (taken + 1)))
            taken, in_a_row = taken + 1, 0
            if self.clip is not None:
                clip_grads_with_norm_(trained, self.clip * scale, total)
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            reason = f"{norm / float(self.usual):.0f} times the usual one" if finite else "not finite"
            log.warning("skipped a step: the gradient norm %.3g is %s (%d in a row)", norm, reason, in_a_row)
        self.counts.copy_(torch.tensor([taken, skipped, in_a_row]))
        if in_a_row >= self.patience:
            raise DivergenceError(
                f"{in_a_row} steps in a row were skipped, the last with a gradient norm of {norm:.3g}", in_a_row
            )
        return finite and not spikes, {"grad_norm": norm, "skipped": float(skipped)}
