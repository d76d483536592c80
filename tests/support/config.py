"""Composed configs, without a run folder."""

from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

CONF = Path(__file__).parents[2] / "conf"


def composed(primary: str, *overrides: str) -> DictConfig:
    """conf/PRIMARY.yaml with overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(primary, [*overrides])


def parsed(command: str, *overrides: str) -> Any:
    """The typed options of `ldm COMMAND OVERRIDES`."""
    name = command.replace("-", "_")
    return get_type_hints(import_module(f"ldm.commands.{name}").main)["options"].parse(composed(name, *overrides))
