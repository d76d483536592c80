"""A command's last line: the command that usually follows, with the names of this run."""

import re
import shlex
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ldm.commands.entry import CHECKOUT, PACKAGED

USUAL_DATA = "digits"  # what every command takes where data= is not given


def say_next(command: str, *overrides: str) -> None:
    """Print "next: ldm COMMAND OVERRIDES", to be copied into a shell."""
    print(f"next: {shlex.join(['ldm', command, *overrides])}")


def data_overrides(data: dict[str, Any]) -> list[str]:
    """What another command needs to read the same images: the group's choice, and what differs from it; without the
    crop, which is random in training alone."""
    choice = HydraConfig.get().runtime.choices["data"]
    usual: Any = {}
    for conf in (PACKAGED, CHECKOUT):
        if (conf / "data" / f"{choice}.yaml").exists():
            usual = OmegaConf.to_container(OmegaConf.load(conf / "data" / f"{choice}.yaml"))
    wanted = {key: value for key, value in data.items() if key != "crop"}
    changed = [f"data.{key}={_word(value)}" for key, value in wanted.items() if key not in usual or usual[key] != value]
    return ([] if choice == USUAL_DATA else [f"data={choice}"]) + changed


def _word(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = not isinstance(value, str) or re.fullmatch(r"[\w./:~+-]+", text)
    return text if plain else "'" + text.replace("'", r"\'") + "'"
