"""Where a run goes on: from its last undamaged checkpoint, or, when training went wrong, from an older one."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ldm import checkpoint as checkpoints
from ldm.conditioning.labels import Labels
from ldm.models.autoencoder import Autoencoder
from ldm.models.dit import DiT
from ldm.models.unet import UNet
from ldm.runtime.files import flat
from ldm.runtime.ranges import Natural
from ldm.runtime.schema import Digits, JsonFile
from ldm.runtime.targets import TARGET
from ldm.sharded_checkpoint import remove
from ldm.training.gradients import DivergenceError
from ldm.training.progress import ProgressModule

log = logging.getLogger(__name__)

ROLLBACKS = "rollbacks.json"


class Rollbacks(JsonFile):
    """rollbacks.json: how many there were, and the last: from which batch, to which checkpoint. It survives a process
    that dies before it has saved again."""

    fix: ClassVar[str] = "remove it, and the run counts its rollbacks from its last checkpoint"

    rollbacks: Natural
    to: Digits
    at: Natural

    @classmethod
    def of(cls, run: Path) -> "Rollbacks | None":
        """A run's; None if there was none."""
        return cls.read(run / ROLLBACKS) if (run / ROLLBACKS).exists() else None


def roll_back(run: Path, module: ProgressModule, why: DivergenceError) -> Path:
    """The checkpoint to go back to: older than what the detector remembers, and than the one that was gone back to
    before; what was saved since is set aside as *.collapsed. Rank 0 decides.

    Raises:
        ValueError: if no rollback is left, or no checkpoint is old enough to be trusted.
    """
    trainer = module.trainer
    to = trainer.strategy.broadcast(_choose(run, module, why) if trainer.is_global_zero else None)
    if not isinstance(to, Path):
        raise ValueError(to)
    module.rollbacks += 1
    log.warning("%s went wrong at batch %d (%s): rollback %d, to %s", run, module.batches_seen, why, module.rollbacks,
                to.name)  # fmt: skip
    return to


def _choose(run: Path, module: ProgressModule, why: DivergenceError) -> Path | str:
    """The checkpoint, or why there is none."""
    at, kept = module.batches_seen, checkpoints.saved(run)
    last = Rollbacks.of(run)
    trusted = [file for file in kept if int(file.stem) <= at - why.memory]
    if len(trusted) > 1 and last is not None and trusted[-1].stem == last.to:  # it did not help the last time
        trusted.pop()
    if module.rollbacks >= module.max_rollbacks:
        left = f"after {module.rollbacks} rollbacks" if module.rollbacks else "and no rollback is left"
        return (
            f"training diverged at batch {at}: {why} ({left}). Go on with a larger {module.rollbacks_key}= or a "
            f"smaller guard.clip=, or start run=NEW with lower learning rates{f' and init={kept[0]}' if kept else ''}"
        )
    if not trusted:
        return (
            f"training diverged at batch {at}: {why}; no checkpoint is {why.memory} batches older: in a new run, lower "
            "every=, health.window= and health.chance=, or raise keep="
        )
    for file in kept[len(trusted) :]:
        aside = file.with_suffix(".collapsed")
        if aside.exists():  # of the last time
            remove(aside)
        file.rename(aside)
    Rollbacks(rollbacks=module.rollbacks + 1, to=trusted[-1].stem, at=at).write(run / ROLLBACKS)
    return trusted[-1]


# of a card: what options say as well, where the autoencoder lies, whose weights' fingerprint the card holds, and what
# is asked for at the very moment that a run goes on
FREE_OF_CARD = frozenset(
    {"autoencoder_path", "sampling", "net.checkpoint", "trust", "config.schedule.resume", "config.disc_schedule.resume"}
)
SHAPES = ("autoencoder", "net", "latent_shape", "class_names")  # keys of a card that weights of another run do not fit
NETWORKS: dict[Any, Callable[..., Any]] = {f"{net.__module__}.{net.__qualname__}": net for net in (UNet, DiT)}
NEW = "start run=NEW from the beginning, as these weights do not fit it"
RENAMED = {"config.vae.": "config.autoencoder."}  # keys by which earlier cards name the same thing


def resume_point(run: Path, wanted: dict[str, Any], free: frozenset[str] = frozenset()) -> tuple[Path | None, int]:
    """The checkpoint that a run goes on from, if any, and the batches it has seen.

    Args:
        wanted : the card that the run would have now
        free   : keys of its config that the same run may change when it goes on

    Raises:
        ValueError: if the run was started with other options, or all of its checkpoints are damaged.
    """
    if checkpoints.newest(run) is None:
        return None, 0
    file, checkpoint = checkpoints.find(run, wanted["kind"], tensors=False)
    card = checkpoint[checkpoints.CARD]
    was, now = flat(_before(card)) | {_renamed(key): value for key, value in flat(card).items()}, flat(wanted)
    may = FREE_OF_CARD | {f"config.{key}" for key in free}
    changed = [k for k in now if was.get(k) != now[k] and not any(k == f or k.startswith(f"{f}.") for f in may)]
    if changed:
        # what the card holds of an option and of the part that was built by it is one change
        differ = {k.removeprefix("config."): f"{_short(was.get(k))} (now {_short(now[k])})" for k in changed}
        named = ", ".join(f"{key}={values}" for key, values in list(differ.items())[:3])
        fits = not any(key.split(".")[0] in SHAPES for key in changed)
        instead = f"start run=NEW init={run}" if fits else NEW
        raise ValueError(f"{run} was started with {named}: keep that, or {instead}")
    return file, card["batches_seen"]


def _before(card: dict[str, Any]) -> dict[str, Any]:
    """What a card says, and its config, of what came after it: it names no argument and no option of later versions."""
    made = defaults_of(NETWORKS.get(card.get("net", {}).get(TARGET), nn.Module))
    told = {TARGET: f"{Labels.__module__}.{Labels.__qualname__}", "pooled": False}
    return {
        "autoencoder": defaults_of(Autoencoder),
        "net": made,
        "condition": told,
        "config": {"overfit": False, "whiten": False, "net": made, "condition": told},
    }


def _short(value: Any) -> str:
    """A value in a line: of a vocabulary, the beginning."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def defaults_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a constructor has values for where none are given, as a card holds them."""
    parameters = inspect.signature(constructor).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def _renamed(key: str) -> str:
    """A key of a card by its present name."""
    for before, after in RENAMED.items():
        if key.startswith(before):
            return after + key.removeprefix(before)
    return key
