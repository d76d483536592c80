"""Stage 2: a denoising network on cached latents."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from ldm.diffusion.guidance import drop_labels
from ldm.diffusion.objective import Objective
from ldm.latents import LatentStats, sample_moments
from ldm.training.progress import ProgressModule


class DiffusionModule(ProgressModule):
    """Fresh posterior samples and label dropout, then the objective."""

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
        self.net, self.objective, self.stats, self.label_dropout = net, objective, stats, label_dropout
        self.make_optimizer = optimizer

    def configure_optimizers(self) -> list[Optimizer]:
        return self.with_rates([self.make_optimizer(self.net.parameters())])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        moments, y = batch  # [B, 2C, h, w], [B]
        y = drop_labels(y, self.label_dropout, self.net.null_class)  # type: ignore[arg-type]
        loss = self._loss(moments, y)
        self.log_terms("train", {"loss": loss.detach()})
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same loss on held-out latents with labels, at times and with noise that are the same every time."""
        moments, y = batch
        self.log_terms("val", {"loss": self._loss(moments, y)})

    def _loss(self, moments: Tensor, y: Tensor) -> Tensor:
        x0 = self.stats.normalize(sample_moments(moments))  # [B, C, h, w]
        return self.objective.loss(self.net, x0, y).mean()
