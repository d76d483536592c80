"""What both stages share: counters of their own, a rate and a seed that are functions of progress, the card."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor

from ldm.checkpoint import CARD


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Factor on the learning rate: linear warm-up over `warmup` batches, then constant or cosine to 0."""

    steps: int
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"schedule.decay must be constant or cosine, not {self.decay!r}")

    def __call__(self, batches_seen: int) -> float:
        if batches_seen < self.warmup:
            return (batches_seen + 1) / (self.warmup + 1)
        if self.decay == "constant":
            return 1.0
        done = (batches_seen - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def seed_from(*progress: int) -> None:
    """Seed torch's global generators by a tuple of counters."""
    torch.manual_seed(int(np.random.SeedSequence(progress).generate_state(1, np.uint64)[0] >> np.uint64(1)))


class ProgressModule(LightningModule):
    """Counts batches and images itself (Lightning's global_step counts optimiser steps: two a batch under a GAN).

    A step's randomness is a function of (seed, batches seen, rank), its learning rate one of batches seen: a resumed
    run needs neither generator nor scheduler states to continue as if it had never stopped.
    """

    def __init__(self, *, schedule: Schedule, seed: int, batch_size: int, card: dict[str, Any]) -> None:
        super().__init__()
        self.schedule, self.seed, self.batch_size, self.card = schedule, seed, batch_size, card
        self.batches_seen, self.images_seen = 0, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_from(self.seed, 0, self.batches_seen, self.global_rank)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.schedule(self.batches_seen)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches_seen += 1
        self.images_seen += self.batch_size * self.trainer.world_size
        self.log_terms("train", {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        for name, count in (("batches", self.batches_seen), ("images", self.images_seen)):
            self.log(name, torch.tensor(count, dtype=torch.float64))  # float32 counts to 16.7 million only

    def on_validation_epoch_start(self) -> None:
        seed_from(self.seed, 1, self.global_rank)

    def log_terms(self, stage: str, terms: dict[str, Tensor] | dict[str, float]) -> None:
        """Log scalars as stage/name; a validation's are averaged over its batches and ranks."""
        validating = stage == "val"
        for name, value in terms.items():
            self.log(
                f"{stage}/{name}", value, prog_bar=name == "loss", sync_dist=validating, batch_size=self.batch_size
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CARD] = self.card | {"batches_seen": self.batches_seen, "images_seen": self.images_seen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen, self.images_seen = (checkpoint[CARD][key] for key in ("batches_seen", "images_seen"))
