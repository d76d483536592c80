"""A command's last line: the command that usually follows, with the names of this run."""

import os
import shlex
from pathlib import Path
from typing import Any

from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ldm.commands.config_files import word

WITHIN = "LDM_WITHIN"  # set where another command calls this one, and itself goes on with the next
USUAL_DATA = "digits"  # what every command takes where data= is not given


def say_next(command: str, *overrides: str) -> None:
    """Print "next: ldm COMMAND OVERRIDES", to be copied into a shell, with the user's own folder of configs, if any.

    Nothing where another command, as `ldm probe`, has called this one: it knows what follows.
    """
    if WITHIN in os.environ:
        return
    print(f"next: {shlex.join(['ldm', command, *own_configs(), *overrides])}")


def own_configs() -> list[str]:
    """The flag of the user's own folder of configs, where this command has one."""
    added = [os.path.relpath(source.path) for source in config_folders() if source.provider == "command-line"]
    return ["--config-dir", added[0]] if added else []


def config_folders() -> list[ConfigSourceInfo]:
    """Where Hydra has looked for this command's configs, in the order in which it did."""
    return [source for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]


def data_overrides(data: dict[str, Any]) -> list[str]:
    """What another command needs to read the same images: the group's choice, and what differs from it; without the
    crop, which is random in training alone."""
    choice = HydraConfig.get().runtime.choices["data"]
    usual: Any = {}
    for source in config_folders():
        file = Path(source.path, "data", f"{choice}.yaml")
        if file.exists():
            usual = OmegaConf.to_container(OmegaConf.load(file))
            break
    wanted = {key: value for key, value in data.items() if key != "crop"}
    changed = [f"data.{key}={word(value)}" for key, value in wanted.items() if key not in usual or usual[key] != value]
    return ([] if choice == USUAL_DATA else [f"data={choice}"]) + changed
