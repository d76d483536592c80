"""What a command tells the loggers: pictures, scores, and wandb's lineage from the autoencoder to the metrics.

An artifact is a reference to where things lie, not a copy, and is named by its type and fingerprint: whoever makes it
and whoever uses it name the same one, which is the edge between their two runs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor


class Artifact(NamedTuple):
    """A thing that one command makes and another uses."""

    type: str
    fingerprint: str
    path: Path


def artifact(type: str, fingerprint: str, path: Path) -> Artifact:
    """By the first 16 digits of its fingerprint, at an absolute path."""
    return Artifact(type, fingerprint[:16], path.resolve())


def link(loggers: list[Logger], *, used: list[Artifact], made: list[Artifact]) -> None:
    """Tell wandb, if it is among the loggers, what this run used and made."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            for use, things in ((True, used), (False, made)):
                for thing in things:
                    drawn = wandb.Artifact(
                        f"{thing.type}-{thing.fingerprint}",
                        thing.type,
                        metadata={"fingerprint": thing.fingerprint, "path": str(thing.path)},
                    )
                    drawn.add_reference(thing.path.as_uri(), name=thing.type, checksum=False)
                    # what use_artifact calls for one that is not uploaded yet; itself it refuses to work offline
                    logger.experiment._log_artifact(drawn, use_after_commit=use)


def record(
    loggers: list[Logger],
    config: dict[str, Any],
    *,
    used: list[Artifact],
    made: list[Artifact],
    scores: dict[str, Any] | None = None,
    pictures: dict[str, Path] | None = None,
) -> None:
    """A whole run of a command that does not train: its config, scores that are numbers, pictures, lineage."""
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


def show(loggers: list[Logger], name: str, image: Tensor | np.ndarray, step: int) -> None:
    """Hand a picture, uint8 [3, H, W] or [H, W, 3], to the loggers that show pictures."""
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [pixels], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")


def close(loggers: list[Logger], failed: bool = False) -> None:
    """End each wandb run, so that the next one of this process (a sweep's point) is its own."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            import wandb

            if wandb.run is not None:  # else the logger has never begun one, or it has been ended already
                wandb.run.finish(exit_code=int(failed))
