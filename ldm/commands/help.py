"""`ldm COMMAND --help`: what it does, its groups with their choices, and each key with its value and its comment."""

import shutil
import textwrap
from typing import Any

from ldm.commands.config_files import CommandConfig, head_of, word

FLAGS = ("-h", "--help")
KEY_WIDTH = 36  # characters of the column of keys
WIDTH = 110  # characters of a line, where the terminal is not narrower


def help_text(command: str, words: list[str], width: int | None = None) -> str:
    """words: the rest of the command line; `data=folder` among them shows that choice's keys."""
    config = CommandConfig.of(command, [word for word in words if word not in FLAGS])
    width = width or min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    groups = [group for group in config.chosen if config.choices(group)]
    packages = {config.package(group) for group in groups}
    of_command = {key: value for key, value in config.keys.items() if key.split(".")[0] not in packages}
    runs = "launcher" in config.chosen  # `ldm estimate` and `ldm report` make no run, `ldm playground` only one
    usage = " ".join([config.help["app_name"], *(["[GROUP=CHOICE]"] if groups else []), "[KEY=VALUE]"])
    lines = [f"usage: {usage}{' [-m]' * runs}", ""]
    lines += [config.help["header"].rstrip(), "", "Keys, with their values:", *_keys(config, of_command, width)]
    if not groups:
        return "\n".join([*lines, "", config.help["footer"].rstrip()])
    lines += ["", "Groups, with their choices, and the keys of the chosen one:"]
    for group in groups:
        lines += _group(config, group, width)
    closing = {f"ldm {command} GROUP=CHOICE --help": "that choice's keys"}
    if runs:
        closing[f"ldm {command} --cfg job"] = "the config that it would run with"
        closing[f"ldm {command} -m KEY=A,B GROUP=A,B"] = "a sweep: each combination, in a folder of its own"
    lines += ["", config.help["footer"].rstrip(), "", *(f"{line:46}{said}" for line, said in closing.items())]
    return "\n".join(lines)


def _group(config: CommandConfig, group: str, width: int) -> list[str]:
    choice = config.chosen[group]
    lines = _entry(f"{group}={word(choice)}", ", ".join(config.choices(group)), width)
    file = config.file_of(group, choice)
    if file is not None and (said := head_of(file)):
        lines += textwrap.wrap(said, width, break_on_hyphens=False, initial_indent="    ", subsequent_indent="    ")
    keys = {key: value for key, value in config.keys.items() if key.split(".")[0] == config.package(group)}
    return lines + _keys(config, keys, width, indent="    ")


def _keys(config: CommandConfig, keys: dict[str, Any], width: int, indent: str = "  ") -> list[str]:
    lines: list[str] = []
    explained: set[str] = set()
    targets = {f"{config.package(group)}._target_" for group in config.chosen}
    for key, value in keys.items():
        if key.endswith("._partial_") or key in targets:
            continue
        said = ["(needed)"] if value == "???" else []
        said += [config.comments[name] for name in _names(key) if name in config.comments and name not in explained]
        explained.update(_names(key))
        lines += _entry(f"{key}={word(value)}", " ".join(said), width, indent)
    return lines


def _names(key: str) -> list[str]:
    """["guard", "guard.clip"] of "guard.clip": a comment may stand at either."""
    parts = key.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _entry(left: str, right: str, width: int, indent: str = "  ") -> list[str]:
    """`left` and, in a column of its own, `right`, wrapped."""
    column = KEY_WIDTH + 2
    start = f"{indent}{left}"
    if not right:
        return [start]
    lines = textwrap.wrap(right, max(20, width - column), break_on_hyphens=False)
    if len(start) >= column:
        return [start, *(" " * column + line for line in lines)]
    return [f"{start:{column}}{lines[0]}", *(" " * column + line for line in lines[1:])]
