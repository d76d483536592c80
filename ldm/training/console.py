"""What a run says on the terminal and in its log."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

log = logging.getLogger(__name__)


class Console(RichProgressBar):
    """One line that says what runs where; a progress bar with the loss, images/s and the time left of the whole run;
    a line for the log after each validation, where nobody may be watching."""

    def __init__(self, run: Path, steps: int, resume: Path | None) -> None:
        super().__init__(refresh_rate=5)
        self.run, self.steps, self.resume = run, steps, resume
        self.shown: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        rates = ", ".join(f"{name} {rate:g}" for name, rate in zip(module.rate_factors(), module.rates, strict=True))
        per_image = f" (lr_per_image {module.lr_per_image:g})" if module.lr_per_image is not None else ""
        flops = module.flops * module.global_batch / 1e9
        parts = [
            f"{self.run} resumes from {self.resume.name}" if self.resume else f"{self.run} starts",
            f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}",
            f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters",
            f"global batch {module.global_batch} = {module.batch_size} images x {trainer.world_size} ranks",
            f"{flops:.3g} GFLOP a batch",
            f"{rates}{per_image}{f' after {module.rollbacks} rollbacks' if module.rollbacks else ''}",
            f"batches {module.batches_seen} to {self.steps}",
        ]
        log.info("; ".join(parts))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The losses, and the speed as it was last logged; now and then, for to read them is to wait for the GPU."""
        module: Any = pl_module
        if not self.shown or module.batches_seen % self.refresh_rate == 0:
            self.shown = self._losses(trainer) | self._pace(trainer, module)
        return self.shown

    def _losses(self, trainer: Trainer) -> dict[str, Any]:
        return {k: f"{float(v):.4g}" for k, v in trainer.callback_metrics.items() if k in ("train/loss", "val/loss")}

    def _pace(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        rate = float(trainer.logged_metrics.get("speed/images_per_s", 0))
        if not rate:
            return {}
        left = (self.steps - module.batches_seen) * module.global_batch / rate
        return {"images/s": f"{rate:.0f}", "left": str(timedelta(seconds=round(left)))}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown = {}
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown = {}
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            values = self._losses(trainer) | self._pace(trainer, pl_module)
            said = ", ".join(f"{key} {value}" for key, value in values.items())
            log.info("%s: batch %d of %d: %s", self.run, pl_module.batches_seen, self.steps, said)
