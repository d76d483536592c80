"""Stage 2: a denoising network on cached latents."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ldm.condition import Condition
from ldm.conditioning.labels import Conditioning
from ldm.data.cache_reader import Batch
from ldm.data.shard_writer import FEATURES
from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import angle
from ldm.diffusion.student import Student
from ldm.latents import LatentStats, sample_moments
from ldm.losses.alignment import Alignment
from ldm.runtime.ranks import mean_over_ranks
from ldm.training.gradients import StepGuard, without_sync
from ldm.training.lightning_internals import FullyShardedStrategy, loss_scaler, unscales_by_itself
from ldm.training.progress import ProgressModule, seed_from
from ldm.training.sharding import gather_full, shard
from ldm.training.speed import forward_flops


class TimeBins:
    """The mean loss in each tenth of the path since `take` was last called, over all ranks."""

    def __init__(self, bins: int = 10) -> None:
        self.bins = bins
        self.sums = torch.zeros(2, bins)  # of losses, and their number

    def add(self, loss: Tensor, t: Tensor) -> None:
        """loss [B] at times t [B]."""
        self.sums, loss = self.sums.to(loss.device), loss.detach().float()
        at = (t * self.bins).long().clamp(0, self.bins - 1)
        self.sums.index_add_(1, at, torch.stack([loss, torch.ones_like(loss)]))

    def take(self, stage: str, device: torch.device) -> dict[str, Tensor]:
        """{"stage_by_time/0.3": mean over [0.3, 0.4)} for bins that hold a loss; the sums start at 0 again.

        The sums are moved to the ranks' device first: a checkpoint's are on the CPU, where NCCL cannot exchange them.
        """
        total, count = mean_over_ranks(self.sums.to(device))
        self.sums = torch.zeros_like(self.sums)
        return {f"{stage}_by_time/{i / self.bins:.1f}": total[i] / count[i] for i in range(self.bins) if count[i] > 0}


class Asked(NamedTuple):
    """What the network is asked of latents x0 [B, C, h, w]: as much noise, times [B] or [B, k], what it is told, where
    errors count (None: everywhere), and the images' features that a layer is aligned with (None: it is not)."""

    x0: Tensor
    eps: Tensor
    drawn: Tensor
    condition: Condition
    where: Tensor | None
    features: Tensor | None

    def parts(self, count: int) -> "list[Asked]":
        """The same in so many parts, or as many as there are rows."""
        size = -(-len(self.x0) // count)
        rows = [slice(start, start + size) for start in range(0, len(self.x0), size)]
        return [
            Asked(
                self.x0[at],
                self.eps[at],
                self.drawn[at],
                self.condition.rows(at),
                None if self.where is None else self.where[at],
                None if self.features is None else self.features[at],
            )
            for at in rows
        ]


class DiffusionModule(ProgressModule):
    """Fresh posterior samples, whose condition is dropped now and then; the objective, or what a student regresses.

    A weighting that learns (`LearnedUncertainty`) is trained, saved and averaged with the network; a teacher is not,
    and what projects an aligned layer is not averaged.

    Args:
        conditioning: what the network is told of a latent, beside its label.
        null:  what the network is told, in one row, where nothing is said.
        accumulate: parts into which a batch is divided, one after the other through the network. The result is that of
                    the undivided batch, except for dropout.
        guard: between the gradients and the step.
        rollbacks: how often the run may go back to an older checkpoint, once the guard has skipped too many in a row.
        rollback_lr: the rate is multiplied by this for each time that it did.
        alignment: of a layer with features of the images; None: there is none.
    """

    not_averaged = ("guard", "alignment")

    def __init__(
        self,
        *,
        net: nn.Module,
        objective: Objective,
        stats: LatentStats,
        conditioning: Conditioning,
        null: Condition,
        label_dropout: float,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        guard: StepGuard,
        accumulate: int = 1,
        rollbacks: int = 0,
        rollback_lr: float = 1.0,
        student: Student | None = None,
        alignment: Alignment | None = None,
        **progress: Any,
    ) -> None:
        super().__init__(**progress)
        self.guard, self.max_rollbacks, self.rollback_lr = guard, rollbacks, rollback_lr
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout={label_dropout} must lie in [0, 1]")
        self.net, self.objective, self.stats = net, objective, stats
        self.conditioning, self.null, self.label_dropout = conditioning, null, label_dropout
        self.weighting = objective.weighting if isinstance(objective.weighting, nn.Module) else nn.Identity()
        self.student, self.accumulate, self.alignment = student, accumulate, alignment
        self.make_optimizer = optimizer
        self.bins = {"train": TimeBins(), "val": TimeBins()}

    def configure_optimizers(self) -> list[Optimizer]:
        trained = (self.net, self.weighting, *([self.alignment] if self.alignment else []))
        return self.with_rates([self.make_optimizer([p for part in trained for p in part.parameters()])])

    def configure_model(self) -> None:
        """Under trainer.strategy=fsdp, shard what is trained. A student's targets are differences and derivatives,
        which half precision would drown, so that its weights are gathered whole."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FullyShardedStrategy):
            shard(self.net, strategy.mesh, strategy.half if self.student is None else None)
            shard(self.weighting, strategy.mesh)
            if self.alignment is not None:
                shard(self.alignment, strategy.mesh)

    def on_fit_start(self) -> None:
        # once: a copy in every step would wait for the GPU
        self.stats = self.stats.to(self.device)
        if self.student is not None and self.student.teacher is not None:
            self.student.teacher.net.to(self.device)

    def flops_per_image(self) -> float:
        """Three forward passes, as a backward one costs two, and those behind a student's target."""
        inputs = self.objective.blank([1, *self.card["latent_shape"]]), torch.empty(1), self.null
        own, taught = (0.0, 0.0) if self.student is None else self.student.passes
        flops = (3 + own) * forward_flops(self.net, *inputs)
        if self.student is None or self.student.teacher is None:
            return flops
        return flops + taught * forward_flops(self.student.teacher.net, *inputs)

    def rate_factors(self) -> dict[str, float]:
        return {name: self.rollback_lr**self.rollbacks * factor for name, factor in super().rate_factors().items()}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The guard refuses a step by taking its gradients away: optimisers pass over what has none."""
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = gather_full(get_total_norm([p.grad for p in trained]))
        scale = self.loss_scale if unscales_by_itself(optimizer) else 1.0
        allowed, terms = self.guard.judge(trained, norm, scale)
        if not allowed and loss_scaler(self.trainer) is None:  # fp16's scaler skips by itself, and lowers its scale
            for parameter in trained:
                parameter.grad = None
        self.log_terms("train", {name: torch.tensor(value) for name, value in terms.items()})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the last part, whose gradients come to those of the others, which are there already."""
        seed_from(self.seed, 2, self.batches_seen)  # of all ranks, for `_rows`
        n, device = len(batch.labels), batch.labels.device
        uniform = self._rows(n, lambda n: torch.rand(n, device=device))
        asked = self._asked(batch, uniform < self.label_dropout)
        seed_from(self.seed, 3, self.batches_seen, self.global_rank)  # each rank's own, for dropout
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()
        logged: dict[str, Tensor] = {}
        parts = asked.parts(self.accumulate)
        for i, part in enumerate(parts):
            share = len(part.x0) / n  # of the batch's mean
            loss, terms = self._loss("train", part), {}
            terms["loss"] = loss.detach()
            if self.alignment is not None and part.features is not None:
                term, more = self.alignment(part.features, part.x0.shape[-2:], self.batches_seen)
                loss, terms = loss + term, terms | more
            loss = loss * share
            logged = {name: logged.get(name, 0.0) + share * value for name, value in terms.items()}
            if i < len(parts) - 1:
                with without_sync(self.trainer.model):
                    self.trainer.strategy.backward(loss, None)
        self.log_terms("train", logged)
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning asks for it between the last part and its backward pass; a step begins with it."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on held-out latents with labels, at times and with noise that are the same every time."""
        self.log_terms("val", {"loss": self._loss("val", self._asked(batch, None))}, images=len(batch.labels))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["train_by_time"] = self.bins["train"].sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.bins["train"].sums = checkpoint["train_by_time"]
        for key in ("state_dict", "current_model_state"):  # of before version 0.3, which had no guard
            for name, value in self.guard.state_dict().items():
                checkpoint.get(key, {}).setdefault(f"guard.{name}", value)

    def begin_stretch(self) -> None:
        self.bins["train"].sums.zero_()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for stage, bins in self.bins.items():
            self.log_dict(bins.take(stage, self.device))

    def _rows(self, n: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Draw for the global batch on every rank, and keep this rank's n rows: the number of ranks changes nothing."""
        start = self.global_rank * n
        return draw(n * self.trainer.world_size)[start : start + n]

    def _told(self, x0: Tensor, batch: Batch) -> tuple[Condition, Tensor | None]:
        """The condition of latents, and where errors count; drawn for the global batch, as `_rows` does."""
        n, start = len(x0), self.global_rank * len(x0)
        drawn = self.conditioning.draw(n * self.trainer.world_size, tuple(x0.shape[1:]), x0.device)
        own = (part[start : start + n] for part in drawn)
        return self.conditioning.condition(x0, batch.labels, self.null, batch.told, *own)

    def _asked(self, batch: Batch, drop: Tensor | None) -> "Asked":
        """What a batch's latents, times, noise and conditions are; drop: where the condition is dropped, bool [B]."""
        moments, eps = batch.moments, batch.noise
        n, shape, device = len(moments), self.card["latent_shape"], moments.device
        spread, normal = (self._rows(n, lambda n: torch.randn(n, *shape, device=device)) for _ in range(2))
        x0 = self.stats.normalize(sample_moments(moments, spread))  # [B, C, h, w]
        drawn = self._rows(n, lambda n: (self.student or self.objective).times(n, device))  # [B], or [B, k]
        condition, where = self._told(x0, batch)
        if drop is not None:
            condition = condition.dropped(drop, self.null)
            where = None if where is None else torch.where(drop.view(-1, 1, 1, 1), 1.0, where)  # all of it is hidden
        eps = self.objective.coupling(x0, normal, condition.label) if eps is None else eps
        return Asked(x0, eps, drawn, condition, where, batch.told.get(FEATURES))

    def _loss(self, stage: str, asked: "Asked") -> Tensor:
        x0, eps, drawn, condition, where, _ = asked
        if self.student is None:
            loss, t = self.objective.loss(self.net, x0, condition, t=drawn, eps=eps, where=where)  # [B] each
        else:
            loss, t = self.student.loss(
                self.net, x0, condition, drawn=drawn, eps=eps, batch=self.batches_seen, where=where
            )
        # EDM's times lie next to 0, where its noise levels do not
        self.bins[stage].add(loss, angle(self.objective.path(t)) if self.objective.unit_input else t)
        return loss.mean()
