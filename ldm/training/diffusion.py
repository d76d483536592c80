"""Stage 2: a denoising network on cached latents."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from ldm.diffusion.guidance import drop_labels
from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import angle
from ldm.latents import LatentStats, sample_moments
from ldm.ranks import mean_over_ranks
from ldm.training.progress import ProgressModule


class TimeBins:
    """The mean loss of each tenth of the path since the last look, over all ranks."""

    def __init__(self, bins: int = 10) -> None:
        self.bins = bins
        self.sums = torch.zeros(2, bins)  # of losses, and their number

    def add(self, loss: Tensor, t: Tensor) -> None:
        """loss [B] at times t [B]."""
        self.sums = self.sums.to(loss.device)
        at = (t * self.bins).long().clamp(0, self.bins - 1)
        self.sums.index_add_(1, at, torch.stack([loss.detach().float(), torch.ones_like(loss)]))

    def take(self, stage: str) -> dict[str, Tensor]:
        """{"stage_by_time/0.3": mean over [0.3, 0.4)} for bins with any; starts anew."""
        total, count = mean_over_ranks(self.sums)
        self.sums = torch.zeros_like(self.sums)
        return {f"{stage}_by_time/{i / self.bins:.1f}": total[i] / count[i] for i in range(self.bins) if count[i] > 0}


class DiffusionModule(ProgressModule):
    """Fresh posterior samples and label dropout, then the objective.

    A weighting that learns (`LearnedUncertainty`) is trained, saved and averaged with the network.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        objective: Objective,
        stats: LatentStats,
        label_dropout: float,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        **progress: Any,
    ) -> None:
        super().__init__(**progress)
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout={label_dropout} must lie in [0, 1]")
        self.net, self.objective, self.stats, self.label_dropout = net, objective, stats, label_dropout
        self.weighting = objective.weighting if isinstance(objective.weighting, nn.Module) else nn.Identity()
        self.make_optimizer = optimizer
        self.bins = {"train": TimeBins(), "val": TimeBins()}

    def configure_optimizers(self) -> list[Optimizer]:
        return self.with_rates([self.make_optimizer([*self.net.parameters(), *self.weighting.parameters()])])

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        moments, y, *noise = batch  # [B, 2C, h, w], [B], perhaps [B, C, h, w]
        y = drop_labels(y, self.label_dropout, self.net.null_class)  # type: ignore[arg-type]
        loss = self._loss("train", moments, y, *noise)
        self.log_terms("train", {"loss": loss.detach()})
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same loss on held-out latents with labels, at times and with noise that are the same every time."""
        moments, y = batch
        self.log_terms("val", {"loss": self._loss("val", moments, y)})

    def on_validation_epoch_end(self) -> None:
        for stage, bins in self.bins.items():
            self.log_dict(bins.take(stage))

    def _loss(self, stage: str, moments: Tensor, y: Tensor, eps: Tensor | None = None) -> Tensor:
        x0 = self.stats.normalize(sample_moments(moments))  # [B, C, h, w]
        loss, t = self.objective.loss(self.net, x0, y, eps)  # [B] each
        # EDM's times lie next to 0, where its noise levels do not
        self.bins[stage].add(loss, angle(self.objective.path(t)) if self.objective.unit_input else t)
        return loss.mean()
