"""A command's run folder: its config.yaml, whose it is, its log, and the loggers that keep to it."""

import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.runtime.files import CONFIG, atomic_write, write_once

LARGEST = 2**22  # bytes of one


def plain(config: Any) -> Any:
    """A config as plain dicts and lists, interpolations resolved; a missing value is an error."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def read_config(run: Path) -> dict[str, Any]:
    """A run folder's config.yaml, as plain data: no tag, no reference and no interpolation in it is followed.

    Raises:
        ValueError: if it is not what a command wrote.
    """
    path, fix = run / CONFIG, "choose another run=, or remove it"
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError("it is no file of a config's size")
        text = path.read_text()
        for i, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if i == 2 and not isinstance(event, yaml.MappingStartEvent):  # after the starts of stream and document
                raise ValueError("it names no command")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
                raise ValueError("it has references or tags")
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        if not isinstance(config, dict) or not isinstance(config.get("command"), str):
            raise ValueError("it names no command")
    except (ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): {fix}") from None
    return {str(key): value for key, value in config.items()}


def write_config(given: dict[str, Any], run: Path) -> None:
    """The command begins: write the config that it was given, and its name, and from here on its log."""
    named = given | {"command": HydraConfig.get().job.config_name}
    with atomic_write(run / CONFIG) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(named)).encode())
    begin_log()


def own_id(path: Path) -> str:
    """A run folder's id for a logger, made once; ValueError if the file holds something else."""
    text = write_once(path, secrets.token_hex(4).encode()).decode(errors="replace")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise ValueError(f"{path} holds {text[:40]!r}, which is no run's id: remove it, and the run gets a new one")
    return text


class RunLog(logging.FileHandler):
    """RUN/log.txt, whose records wait until `begin_log`."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, delay=True, encoding="utf-8", errors="backslashreplace")
        self.waiting: list[logging.LogRecord] | None = []

    def _open(self) -> Any:
        """Of a link, the file elsewhere is left alone."""
        return open(
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666),
        )

    def emit(self, record: logging.LogRecord) -> None:
        if self.waiting is None:
            super().emit(record)
        else:
            self.waiting.append(record)

    def begin(self) -> None:
        """Write what waits, and from now on each record at once."""
        waiting, self.waiting = self.waiting or [], None
        for record in waiting:
            super().emit(record)


def begin_log() -> None:
    """The command begins: its log is written from here on, with what has been said before."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLog):
            handler.begin()


def end_log() -> None:
    """The command has ended: what this process logs from here on is no longer its own."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, RunLog)]:
        root.removeHandler(handler)
        handler.close()


def check_owner(folder: Path, name: str) -> None:
    """Refuse a folder that another command made."""
    if (folder / CONFIG).exists():
        owner = read_config(folder)["command"]
        if owner != name:
            raise ValueError(f"{folder} belongs to ldm {owner.replace('_', '-')}: choose another run=")


def build_loggers(nodes: dict[str, dict[str, Any]], folder: Path) -> list[Any]:
    """The loggers beside the CSV log. One with a null id gets an id that stays this run folder's own; the points of a
    sweep are a group, each named by its overrides."""
    loggers = []
    for name, node in nodes.items():
        changed: dict[str, Any] = {}
        if "group" in node and node["group"] is None and HydraConfig.get().mode is RunMode.MULTIRUN:
            changed |= {"group": folder.parent.name, "name": folder.name}
        if "id" in node and node["id"] is None:
            changed["id"] = own_id(folder / f"{name}-id.txt")
        if "mode" in node and node["mode"] is None:
            changed["mode"] = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        loggers.append(instantiate(node | changed, _convert_="all"))
    return loggers
