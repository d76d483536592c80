"""A sweep's points: the name of each one's folder, and its card, point.json, which says how it went."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.runtime.files import read_json, write_json

POINT = "point.json"  # the card's file


def point_name(overrides: str) -> str:
    """The folder of a sweep's point: its overrides, as far as a file system takes them."""
    name = overrides.replace("/", "%2F")
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


# at import, because a launcher's job resolves hydra.sweep.subdir before it calls any function of ours
OmegaConf.register_new_resolver("ldm.point", point_name, replace=True)


class PointCard:
    """The card of one point, RUN/POINT/point.json: its config, whether it is finished, what it returned, why it failed.

    Args:
        folder: the point's run folder.
        writes: whether this process writes the card; of several ranks, rank 0 alone does.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.path, self.writes = folder / POINT, writes
        self.content: dict[str, Any] = {"config": {}, "finished": False, "value": None, "error": None}

    def start(self, config: dict[str, Any]) -> bool:
        """Note that the point starts with this config; False if it is finished already, with the same one."""
        config = {key: value for key, value in config.items() if key != "logger"}
        before = read_json(self.path) if self.path.exists() else {}
        if before.get("finished") and before["config"] == json.loads(json.dumps(config)):
            self.content = before
            return False
        self._write(config=config)
        return True

    @property
    def value(self) -> float | None:
        """What the point returned, which is what a sweep optimises; None before it is finished."""
        value: float | None = self.content["value"]
        return value

    def finish(self, value: float | None) -> None:
        self._write(finished=True, value=value)

    def fail(self, error: str) -> None:
        self._write(error=error)

    def _write(self, **news: Any) -> None:
        self.content |= news
        if self.writes:
            write_json(self.path, self.content)
