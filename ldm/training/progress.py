"""What both stages share: counters of their own, a rate and a seed that are functions of progress, the card."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ldm.checkpoint import CARD
from ldm.training.lightning_internals import loss_scaler
from ldm.training.schedule import Schedule

log = logging.getLogger(__name__)


def seed_from(*progress: int) -> None:
    """Seed torch's global generators by a tuple of counters."""
    torch.manual_seed(int(np.random.SeedSequence(progress).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def check_optimizer_states(optimizers: list[Optimizer], states: list[dict[str, Any]]) -> None:
    """Hold a checkpoint's optimiser states to the optimisers that go on with them, one for one.

    Raises:
        ValueError: if there are more or fewer, or one is of other parameters.
    """
    if len(states) != len(optimizers):
        raise ValueError(
            f"the checkpoint has the state of {len(states)} optimisers, this run has {len(optimizers)}: take an older "
            "one, or start run=NEW init=CHECKPOINT"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        check_optimizer_state(optimizer, state)


def check_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Hold a checkpoint's optimiser state to the parameters that it is for: a fused step would read beyond them.

    Raises:
        ValueError: if it is of other parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        groups = [len(group["params"]) for group in state["param_groups"]]
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        known = dict(zip(numbers, parameters, strict=True))
        fits = groups == [len(group["params"]) for group in optimizer.param_groups] and all(
            value.shape in (known[n].shape, ()) and value.isfinite().all()
            for n, moments in state["state"].items()
            for value in moments.values()
            if isinstance(value, Tensor)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(
            "the checkpoint's optimiser state is not of these parameters, or not finite: take an older one, or start "
            "run=NEW init=CHECKPOINT"
        )


class ProgressModule(LightningModule):
    """Counts batches and images itself (Lightning's global_step counts optimiser steps: two a batch under a GAN).

    A step's randomness is a function of (seed, batches seen, rank), its learning rate one of batches seen: a resumed
    run needs neither generator nor scheduler states to continue as if it had never stopped.

    schedules     of each optimiser's rate, by the name under which the rate is logged
    seed          of all that training draws
    batch_size    images of a batch that a rank takes: its share, whatever parts that is divided into
    lr_per_image  the rates are this times the global batch; None = each optimiser's own
    card          what a checkpoint says of itself, beside the counters
    """

    not_averaged: tuple[str, ...] = ()  # submodules that the EMA copies
    rollbacks_key = "rollbacks"  # of the config, where `max_rollbacks` comes from

    def __init__(
        self,
        *,
        schedules: dict[str, Schedule],
        seed: int,
        batch_size: int,
        lr_per_image: float | None,
        card: dict[str, Any],
    ) -> None:
        super().__init__()
        self.planned, self.schedules = schedules, schedules  # as the config has them; as a run that resumes goes on
        self.moved: list[tuple[str, float, float]] = []  # rates whose steps changed: name, last factor, next factor
        self.seed, self.batch_size, self.card = seed, batch_size, card
        self.lr_per_image = lr_per_image
        self.batches_seen, self.images_seen, self.rollbacks = 0, 0, 0
        self.flops = 0.0  # of `flops_per_image`
        self.max_rollbacks, self.rolled_back = 0, False
        self.optimizer_states: list[dict[str, Any]] | None = None  # of a checkpoint, until they are checked
        self.after_batch: Callable[[Trainer, ProgressModule], None] = lambda *_: None  # once a batch is counted

    def with_rates(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        """Note the learning rates that the config gives: each optimiser's own, or lr_per_image x the global batch."""
        world = self.trainer.world_size
        if self.lr_per_image is not None:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.lr_per_image * self.batch_size * world
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        if self.optimizer_states is not None:
            check_optimizer_states(optimizers, self.optimizer_states)
            self.optimizer_states = None
        return optimizers

    @property
    def global_batch(self) -> int:
        """Images that a batch has over all ranks."""
        return self.batch_size * self.trainer.world_size

    @property
    def loss_scale(self) -> float:
        """What fp16's scaler multiplies the loss with; 1 where there is none."""
        scaler = loss_scaler(self.trainer)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def flops_per_image(self) -> float:
        """Floating-point operations that training needs for an image, forward and backward; 0 where it is unknown."""
        return 0.0

    def rate_factors(self) -> dict[str, float]:
        """The factor on each optimiser's rate in this batch, by the name under which the rate is logged."""
        return {name: schedule(self.batches_of(name, self.batches_seen)) for name, schedule in self.schedules.items()}

    def batches_of(self, rate: str, batches: int) -> int:
        """How many of so many batches count for a rate's schedule: all, unless its optimiser starts later."""
        return batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_from(self.seed, 0, self.batches_seen, self.global_rank)
        self.now = {
            name: rate * factor for rate, (name, factor) in zip(self.rates, self.rate_factors().items(), strict=True)
        }
        for optimizer, rate in zip(self.trainer.optimizers, self.now.values(), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches_seen += 1
        self.images_seen += self.global_batch
        # on the CPU, as below: Lightning makes tensors of plain numbers on the GPU, and waits for it
        self.log_terms("train", {name: torch.tensor(rate) for name, rate in self.now.items()})
        self.log_axis()
        self.after_batch(self.trainer, self)

    def on_validation_epoch_start(self) -> None:
        seed_from(self.seed, 1, self.global_rank)

    def on_validation_epoch_end(self) -> None:
        self.log_axis()

    def log_axis(self) -> None:
        """What every row of the log has: the batch (counted from 0, Lightning's `step`), and how many were seen."""
        for name, count in (
            ("step", self.batches_seen - 1),
            ("batches", self.batches_seen),
            ("images", self.images_seen),
        ):
            self.log(name, torch.tensor(count, dtype=torch.float64))  # float32 counts to 16.7 million only

    def log_terms(self, stage: str, terms: dict[str, Tensor] | dict[str, float], images: int = 1) -> None:
        """Log scalars as stage/name; a validation's are averaged over its batches, of so many images, and ranks."""
        weight: Any = float(images)  # an int's mean over ranks would be rounded down
        for name, value in terms.items():
            self.log(f"{stage}/{name}", value, sync_dist=stage == "val", batch_size=weight)

    def begin_stretch(self) -> None:
        """The run goes on from a save whose validation is done: what it reported is not counted again."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counters = {name: getattr(self, name) for name in ("batches_seen", "images_seen", "rollbacks", "global_batch")}
        schedules = {name: schedule.state() for name, schedule in self.schedules.items()}
        checkpoint[CARD] = self.card | counters | {"schedules": schedules}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.optimizer_states = checkpoint.get("optimizer_states", [])  # a run goes on with each of its optimisers'
        card = checkpoint[CARD]
        self.batches_seen, self.images_seen = card["batches_seen"], card["images_seen"]
        if card["global_batch"] != self.global_batch:
            log.warning("the global batch was %d and is now %d: the order of the data is dealt anew from image %d on",
                        card["global_batch"], self.global_batch, self.images_seen)  # fmt: skip
        self.rolled_back = self.rollbacks > card["rollbacks"]  # which what it goes back to does not undo
        self.rollbacks = max(self.rollbacks, card["rollbacks"])
        self._go_on(card)

    def _go_on(self, card: dict[str, Any]) -> None:
        """Go on by the schedules that this run had, whose steps may have been others."""
        self.schedules, self.moved = {}, []
        for name, planned in self.planned.items():
            more = self.card["config"]["steps"] - card["config"]["steps"]
            state = card.get("schedules", {}).get(name, {"steps": int(planned.steps - more)})  # earlier cards have none
            before, seen = replace(planned, **state), self.batches_of(name, self.batches_seen)
            after = self.schedules[name] = planned.going_on(before, seen)
            if before.steps != after.steps and planned.decay == "cosine" and seen > 0:
                self.moved.append((name, before(seen - 1), after(seen)))

    def on_train_start(self) -> None:
        rates = dict(zip(self.schedules, self.rates, strict=True))
        for name, before, after in self.moved:
            key = "schedule.resume" if name == "lr" else "disc_schedule.resume"
            log.info("steps are others than before: %s goes from %.3g to %.3g by %s=%s (anew lays the cosine over all "
                     "steps, tail goes on from the rate as it was, 0.1 from a tenth of the full one)",
                     name, rates[name] * before, rates[name] * after, key, self.planned[name].resume)  # fmt: skip
        self.moved = []
