"""What commands tell the loggers beside a training's figures: configs, scores, pictures, and wandb's lineage.

The lineage leads from the autoencoder to the metrics: each run names the artifacts that it used and made. An artifact
refers to where a thing lies, and holds no copy of it. It is named by its type and fingerprint, so that the run that
makes it and the run that uses it name the same one; that is what links the two runs.

Lightning is imported where there are loggers: without any, a command need not wait for it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger


class Artifact(NamedTuple):
    """A thing that one command makes and another uses."""

    type: str  # "autoencoder", "latents", ...
    fingerprint: str  # the first 16 digits of its fingerprint or checksum
    path: Path  # absolute


def artifact(type: str, fingerprint: str, path: Path) -> Artifact:
    """An artifact, from all digits of its fingerprint and any path."""
    return Artifact(type, fingerprint[:16], path.resolve())


def link(loggers: "list[Logger]", *, used: list[Artifact], made: list[Artifact]) -> None:
    """Tell wandb, if it is among the loggers, what this run used and made."""
    for logger in of_wandb(loggers):
        import wandb

        for is_used, artifacts in ((True, used), (False, made)):
            for each in artifacts:
                reference = wandb.Artifact(
                    f"{each.type}-{each.fingerprint}",
                    each.type,
                    metadata={"fingerprint": each.fingerprint, "path": str(each.path)},
                )
                reference.add_reference(each.path.as_uri(), name=each.type, checksum=False)
                # what use_artifact calls for an artifact that is not uploaded yet; use_artifact refuses to work offline
                logger.experiment._log_artifact(reference, use_after_commit=is_used)


def of_wandb(loggers: "list[Logger]") -> "list[WandbLogger]":
    """Those of them that are wandb's."""
    if not loggers:
        return []
    from lightning.pytorch.loggers import WandbLogger

    return [logger for logger in loggers if isinstance(logger, WandbLogger)]


def record(
    loggers: "list[Logger]",
    config: dict[str, Any],
    *,
    used: list[Artifact],
    made: list[Artifact],
    scores: dict[str, Any] | None = None,
    pictures: dict[str, Path] | None = None,
) -> None:
    """Log the run of a command that does not train, from beginning to end.

    Args:
        loggers:  that are told; they are closed at the end.
        config:   the command's options.
        used:     artifacts that it used.
        made:     artifacts that it made.
        scores:   of which those that are numbers are logged; None = there are none.
        pictures: files by name; None = there are none.
    """
    numbers = {k: float(v) for k, v in (scores or {}).items() if isinstance(v, int | float)}
    for logger in loggers:
        logger.log_hyperparams(config)
        if numbers:
            logger.log_metrics(numbers, step=0)
    for name, path in (pictures or {}).items():
        with Image.open(path) as picture:
            show(loggers, name, np.array(picture), 0)
    link(loggers, used=used, made=made)
    close(loggers)


def show(loggers: "list[Logger]", name: str, image: Tensor | np.ndarray, step: int) -> None:
    """Hand a picture, a tensor uint8 [3, H, W] or an array uint8 [H, W, 3], to the loggers that show pictures."""
    if not loggers:
        return
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [pixels], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")


def close(loggers: "list[Logger]", failed: bool = False) -> None:
    """End the loggers' runs: a wandb run that stays open would take in the next point of a sweep in this process; and
    wait until wandb's file is complete."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
    for _ in of_wandb(loggers):
        import wandb

        if wandb.run is not None:  # else the logger has never begun one, or it has been ended already
            wandb.run.finish(exit_code=int(failed))
            wandb.teardown()  # waits for wandb's own process, which `finish` only asks to close the file
