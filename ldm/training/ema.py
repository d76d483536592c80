"""The average of the weights that validation, samples and every later stage use."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from ldm.training.lightning_internals import sharded_saves
from ldm.training.sharding import as_held, forget_gathered, gather_full


def decay_at(update: int, decay: float) -> float:
    """What is kept of the average at this update, counted from 1: LDM's warm-up, min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + update) / (10 + update))


class EMA(Callback):
    """Exponential moving average of all trained parameters but those of `module.not_averaged`; it starts as the first
    weights.

    Validation runs on it. A checkpoint holds it as state_dict, and the weights of that moment as current_model_state.
    Lightning's own callback averages complete modules; this one averages the part that a rank holds, so that it is
    sharded as the weights are.

    Args:
        decay: share of the average that an update keeps, after the warm-up
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates, self.latest_step = 0, 0  # of the average; the optimiser's steps at the last of them
        self.average: dict[str, Tensor] = {}
        self.loaded: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average here, since only now the parameters have their devices, types and shards."""
        left_out = tuple(f"{name}." for name in pl_module.not_averaged)  # type: ignore[union-attr]
        self.parameters = {
            name: p for name, p in pl_module.named_parameters() if p.requires_grad and not name.startswith(left_out)
        }
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, mean in self.average.items():
            if name in self.loaded:
                mean.copy_(as_held(self.loaded[name], mean))
        self.loaded = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if trainer.global_step > self.latest_step:  # a step was taken
            self.updates, self.latest_step = self.updates + 1, trainer.global_step
            current = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - decay_at(self.updates, self.decay))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        forget_gathered(module)
        for name, mean in self.average.items():
            now = self.parameters[name].detach().clone()
            self.parameters[name].copy_(mean)
            mean.copy_(now)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        as_saved = gather_full if sharded_saves(trainer) is None else lambda mean: mean
        average = {name: as_saved(mean) for name, mean in self.average.items()}
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = checkpoint["state_dict"] | average
        checkpoint["averaging_state"] = {"updates": self.updates, "latest_step": self.latest_step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["averaging_state"]
        self.updates, self.latest_step = state["updates"], state["latest_step"]
        self.loaded = checkpoint["state_dict"]
        # the module has loaded the average as its weights by now: it goes on with those of that moment
        raw = checkpoint["current_model_state"]
        options = StateDictOptions(full_state_dict=not any(isinstance(tensor, DTensor) for tensor in raw.values()))
        set_model_state_dict(pl_module, raw, options=options)
