"""Power-function averages beside the run's own, whose snapshots lie beside the checkpoints: see `power_function`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ldm.checkpoint import AVERAGES, CARD, NET_PREFIX
from ldm.runtime.files import atomic_write, remove_leftovers
from ldm.runtime.wrong import first_line
from ldm.training.lightning_internals import sharded_saves
from ldm.training.power_function import combination, decay, exponent
from ldm.training.sharding import as_held, gather_full

STATE = "power_averages"


class PowerAverages(Callback):
    """Averages of the network's parameters, by the widths given, and at each checkpoint a snapshot of each:
    RUN/averages/BATCHES.pt, in half precision, which nothing prunes.

    Costs, for each width: a copy of the network in memory and in the checkpoint, half a copy on disk at each save, and
    a pass over the weights at each step.

    Args:
        widths: sigma_rel of each, as (0.05, 0.10); two that differ by a factor of two make all between and around them
    """

    def __init__(self, widths: Sequence[float]) -> None:
        self.gammas = {f"{width:g}": exponent(width) for width in widths}
        self.updates, self.latest_step = 0, 0
        self.averages: dict[str, dict[str, Tensor]] = {}
        self.loaded: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now the parameters have their devices, types and shards."""
        self.parameters = {
            name: p for name, p in pl_module.named_parameters() if p.requires_grad and name.startswith(NET_PREFIX)
        }
        for width in self.gammas:
            held = {name: p.detach().clone() for name, p in self.parameters.items()}
            for name, tensor in self.loaded.get(width, {}).items():
                held[name].copy_(as_held(tensor, held[name]))
            self.averages[width] = held
        self.loaded = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if trainer.global_step > self.latest_step:  # a step was taken
            self.updates, self.latest_step = self.updates + 1, trainer.global_step
            current = [p.detach() for p in self.parameters.values()]
            for width, gamma in self.gammas.items():
                torch._foreach_lerp_(list(self.averages[width].values()), current, 1 - decay(self.updates, gamma))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        full = {w: {name: gather_full(mean) for name, mean in held.items()} for w, held in self.averages.items()}
        saved = full if sharded_saves(trainer) is None else {w: dict(held) for w, held in self.averages.items()}
        checkpoint[STATE] = {"updates": self.updates, "latest_step": self.latest_step, "averages": saved}
        if trainer.is_global_zero:
            batches: int = pl_module.batches_seen  # type: ignore[assignment]
            save_snapshot(Path(trainer.default_root_dir) / AVERAGES / f"{batches:08d}.pt", self.updates, full)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(STATE)
        if state is None or set(state["averages"]) != set(self.gammas):
            kept = "none" if state is None else ", ".join(state["averages"])
            raise ValueError(
                f"power_ema=[{','.join(self.gammas)}]: this run has kept averages of {kept}, and others can't begin in "
                "its middle: choose another run=, with init="
            )
        self.updates, self.latest_step, self.loaded = state["updates"], state["latest_step"], state["averages"]
        if trainer.is_global_zero:
            forget_later(Path(trainer.default_root_dir), int(checkpoint[CARD]["batches_seen"]))


def save_snapshot(file: Path, updates: int, averages: dict[str, dict[str, Tensor]]) -> None:
    """Write averages of so many updates, by their widths; the names are the network's own."""
    halves = {
        width: {name.removeprefix(NET_PREFIX): tensor.detach().cpu().half() for name, tensor in held.items()}
        for width, held in averages.items()
    }
    if file.parent.is_dir():
        remove_leftovers(file.with_name("*.pt"))
    with atomic_write(file) as stream:
        torch.save({"updates": updates, "averages": halves}, stream)


def forget_later(run: Path, batches: int) -> None:
    """Remove the snapshots of a run beyond so many batches, from which it has gone back."""
    for file in (run / AVERAGES).glob("[0-9]*.pt"):
        if int(file.stem) > batches:
            file.unlink()


def read_snapshots(run: Path) -> list[tuple[int, dict[str, dict[str, Tensor]]]]:
    """A run's snapshots, the oldest first: the updates and the averages of each.

    Raises:
        ValueError: if there is none, or one is damaged.
    """
    files = sorted((run / AVERAGES).glob("[0-9]*.pt"))
    if not files:
        raise ValueError(f"{run} has kept no averages: train it with power_ema=[0.05,0.1]")
    found = []
    for file in files:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            found.append((int(held["updates"]), dict(held["averages"])))
        except Exception as error:  # torch's reader raises whatever a damaged file leads it to
            raise ValueError(f"{file} is damaged ({first_line(error)}): remove it, and go on without") from None
    return found


def averaged(run: Path, width: float) -> tuple[dict[str, Tensor], int, float]:
    """The network's average of this width at the end of a run's snapshots, float32, after how many updates, and how far
    it is from that of the width (see `power_function.combination`)."""
    snapshots = read_snapshots(run)
    pairs = [(updates, kept, state) for updates, averages in snapshots for kept, state in averages.items()]
    ends, gammas = [updates for updates, *_ in pairs], [exponent(float(kept)) for _, kept, _ in pairs]
    end = max(ends)
    shares, off = combination(ends, gammas, exponent(width), end)
    state = {
        name: sum(float(share) * held[name].float() for share, (*_, held) in zip(shares, pairs, strict=True))
        for name in pairs[0][2]
    }
    return state, end, off  # type: ignore[return-value]
