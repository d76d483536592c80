"""One training run: a folder that the same command continues."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ldm import checkpoint as checkpoints
from ldm.files import atomic_write, read_json, write_json
from ldm.training.callbacks import EMA, Curves, count_parameters
from ldm.training.gradients import DivergenceError
from ldm.training.progress import ProgressModule

log = logging.getLogger(__name__)

ROLLBACKS = "rollbacks.json"  # survives a process that dies before it has saved again


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final place and renames (Lightning's own goes through the system's temporary folder, which on a
    cluster is another disk, so that its last move is a copy that can be cut short)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def fit(
    module: ProgressModule,
    data: LightningDataModule,
    *,
    run: Path,
    steps: int,
    every: int,
    keep: int,
    ema_decay: float,
    callbacks: list[Callback],
    loggers: list[Logger],
    trainer: dict[str, Any],
    begin: Callable[[], None],
) -> None:
    """Train for `steps` batches in all; validate, draw and save after each `every` of them; keep `keep` saves.

    What Lightning calls an epoch is here the stretch between two saves: the data are one endless stream.
    `begin` is called once all checks have passed, before the first batch.

    Raises:
        ValueError: if the run folder's checkpoint is damaged or of another experiment, or the trainer's options wrong.
    """
    every = min(every, steps)
    if steps % every:
        raise ValueError(f"steps={steps} must be a multiple of every={every}, the batches between two checkpoints")
    module.card["every"] = every  # Lightning counts these stretches
    resume = _resume_point(run, module.card, steps)
    if resume is not None and (run / ROLLBACKS).exists():
        module.rollbacks = read_json(run / ROLLBACKS)["rollbacks"]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what matters of its banner is in the line that follows

    def make_fitter() -> Trainer:
        return _make_trainer(
            trainer,
            default_root_dir=run,
            max_epochs=steps // every,
            limit_train_batches=every,
            use_distributed_sampler=False,  # the order deals the ranks their shares
            num_sanity_val_steps=0,
            logger=[CSVLogger(run, name="csv"), *loggers],
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                EMA(ema_decay),
                *callbacks,
                Curves(),
                RichProgressBar(refresh_rate=5),
                ModelCheckpoint(
                    dirpath=run / checkpoints.FOLDER,
                    filename="{batches:08.0f}",
                    auto_insert_metric_name=False,
                    monitor="batches",
                    mode="max",
                    save_top_k=keep,
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
            ],
        )

    fitter = make_fitter()
    parameters = count_parameters(module) / 1e6
    start = f"resumes from {resume.name}" if resume else "starts"
    log.info("%s %s: %.2f M parameters, %d batches of %d images on each of %d x %s", run, start, parameters, steps,
             module.batch_size, fitter.world_size, fitter.strategy.root_device)  # fmt: skip
    begin()
    with warnings.catch_warnings():
        ignore_known_warnings()
        while True:
            try:
                return fitter.fit(module, data, ckpt_path=resume, weights_only=True)
            except SystemExit:  # Lightning's way out of a Ctrl-C
                raise KeyboardInterrupt from None
            except DivergenceError as why:
                resume = _roll_back(run, module, why)
                fitter = make_fitter()
            except RuntimeError as error:
                if isinstance(error.__context__, KeyboardInterrupt):  # in a save, torch complains of the file instead
                    raise KeyboardInterrupt from None
                raise


def _make_trainer(chosen: dict[str, Any], **ours: Any) -> Trainer:
    if chosen.keys() & ours.keys():
        raise ValueError(f"trainer.{next(iter(chosen.keys() & ours.keys()))} can't be chosen: steps and every set it")
    try:
        return Trainer(**chosen, **ours, enable_model_summary=False)
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer: {error}") from None


def _roll_back(run: Path, module: ProgressModule, why: DivergenceError) -> Path:
    """The checkpoint to go back to: older than what the detector remembers, and than the one that was gone back to
    before; what was saved since is set aside as *.collapsed.

    Raises:
        ValueError: if no rollback is left, or no checkpoint is old enough to be trusted.
    """
    at, kept = module.batches_seen, sorted((run / checkpoints.FOLDER).glob("*.ckpt"))
    last = read_json(run / ROLLBACKS)["to"] if (run / ROLLBACKS).exists() else None
    trusted = [file for file in kept if int(file.stem) <= at - why.memory]
    if len(trusted) > 1 and trusted[-1].stem == last:  # it did not help the last time
        trusted.pop()
    if module.rollbacks >= module.max_rollbacks:
        left = f"after {module.rollbacks} rollbacks" if module.rollbacks else "and no rollback is left"
        raise ValueError(
            f"training diverged at batch {at}: {why} ({left}). Go on with a larger health.rollbacks= or a smaller "
            f"guard.clip=, or start run=NEW init={kept[0] if kept else 'RUN'} with lower learning rates"
        )
    if not trusted:
        raise ValueError(
            f"training diverged at batch {at}: {why}; no checkpoint is {why.memory} batches older: in a new run, lower "
            "every=, health.window= and health.chance=, or raise keep="
        )
    if module.trainer.is_global_zero:
        for file in kept[len(trusted) :]:
            file.rename(file.with_suffix(".collapsed"))
        write_json(run / ROLLBACKS, {"rollbacks": module.rollbacks + 1, "to": trusted[-1].stem, "at": at})
    module.rollbacks += 1
    log.warning("%s went wrong at batch %d (%s): rollback %d, to %s", run, at, why, module.rollbacks, trusted[-1].name)
    return trusted[-1]


# what the same run may do differently when it goes on: how far, where and how it is watched
FREE = {"run", "steps", "every", "keep", "num_workers", "trainer", "logger"}
FREE |= {"init", "features", "accumulate", "health", "guard", "disc_guard"}  # of stage 1: the watch, not the aim
FREE |= {
    "latents",
    "autoencoder",
    "verify",
    "sampler",
    "grid",
    "guidance",
}  # of stage 2; fingerprints say whether they are the same


def _resume_point(run: Path, wanted: dict[str, Any], steps: int) -> Path | None:
    file = checkpoints.newest(run)
    if file is None:
        return None
    card = checkpoints.read(file, wanted["kind"])[checkpoints.CARD]
    was, now = _flat(card), _flat(wanted)
    free = ("autoencoder_path", *(f"config.{key}" for key in FREE))
    changed = [k for k in now if was.get(k) != now[k] and not any(k == f or k.startswith(f"{f}.") for f in free)]
    if changed:
        named = ", ".join(f"{k.removeprefix('config.')}={was.get(k)} (now {now[k]})" for k in changed[:3])
        raise ValueError(f"{run} was started with {named}: keep that, or choose another run=")
    if card["batches_seen"] >= steps:
        log.info("%s is already trained for %d batches; raise steps= to go on", run, card["batches_seen"])
    return file


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def ignore_known_warnings() -> None:
    """Lightning's advice that does not apply here, each by its text."""
    for message in (
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*does not have many workers.*",  # num_workers is the user's choice; 0 is best for small data
        ".*Checkpoint directory .* exists and is not empty.*",  # resuming is the point
        ".*Trying to infer the `batch_size`.*",
        ".*`training_step` returned `None`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*recommended to use .*sync_dist=True.*",  # torchmetrics has been over all ranks already
    ):
        warnings.filterwarnings("ignore", message=message)
