"""From a run's config.yaml back to the command line that made it: config.yaml holds values, and not who gave them."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.commands.cli import COMMANDS
from ldm.commands.config_files import CommandConfig, content_of, word
from ldm.commands.run_folder import read_config
from ldm.report.facts import Change, Lineage, Recipe
from ldm.report.lineage import gather
from ldm.runtime.files import flat

NEVER = ("experiment", "sweep", "launcher", "debug")  # groups whose keys lie all over, or that leave no key
MISSING = object()
RUNS = "runs"  # where run folders lie


def lineage_of(run: Path) -> Lineage:
    """The run and those that it was made from, each with its facts, scores, pictures, cost and command line.

    Raises:
        ValueError: if the folder is no run.
    """
    return gather(run, recipe_of)


def recipe_of(run: Path) -> Recipe:
    """How a run was made.

    Raises:
        ValueError: if its config.yaml is missing or damaged, or of a command that this version does not have.
    """
    config = read_config(run)
    name = config.pop("command").replace("_", "-")
    if name not in COMMANDS:
        raise ValueError(f"{run}/config.yaml was written by ldm {name}, which this version of ldm does not have")
    given = {key: value for key, value in flat(config).items() if value != {}}
    words, usual = closest(name, given), composed(name, ())
    overrides = (*words, *differences(given | {"run": name_of(run, config)}, composed(name, words)))
    overrides = (*elsewhere(run, config), *overrides)
    chosen = {group: choice for group, _, choice in (each.partition("=") for each in words)}
    groups = CommandConfig.of(name, []).chosen
    changed = [Change(group, choice, groups[group]) for group, choice in chosen.items()]
    changed += [
        Change(key, value, usual.get(key))
        for key, value in given.items()
        if not same(value, usual.get(key, MISSING)) and not key.endswith(("._target_", "._partial_"))
    ]
    line = " ".join(map(quoted, ["ldm", name, *overrides]))
    return Recipe(command=name, words=overrides, line=line, changed=tuple(changed), config=config)


def quoted(word: str) -> str:
    """A word as a person would write it for a shell: in double quotes, where it has single ones and nothing else."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def name_of(run: Path, config: dict[str, Any]) -> str:
    """The run= that has its results here: the folder's place below runs/, where it still lies below one."""
    parts = run.resolve().parts
    below = len(parts) - 1 - parts[::-1].index(RUNS) if RUNS in parts else len(parts)
    return "/".join(parts[below + 1 :]) or str(config.get("run", run.name))


def elsewhere(run: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The override of a folder that lies below no runs/: it was moved, or hydra.run.dir= was given."""
    return () if RUNS in run.resolve().parts or run.name == config.get("run") else (f"hydra.run.dir={word(str(run))}",)


def composed(command: str, words: Iterable[str]) -> dict[str, Any]:
    """The command's keys with these choices of groups, without empty nodes."""
    return {key: value for key, value in CommandConfig.of(command, [*words]).keys.items() if value != {}}


def closest(command: str, given: dict[str, Any]) -> tuple[str, ...]:
    """The choices of groups, where not the defaults, from which the fewest further overrides lead to a config."""
    config = CommandConfig.of(command, [])
    candidates = [closest_groups(config, given)]
    for name in config.choices("experiment") if "experiment" in config.chosen else []:
        of_experiment = CommandConfig.of(command, [f"experiment={name}"])
        candidates.append((f"experiment={name}", *closest_groups(of_experiment, given)))
    return min(candidates, key=lambda words: len(words) + len(differences(given, composed(command, words))))


def closest_groups(config: CommandConfig, given: dict[str, Any]) -> tuple[str, ...]:
    """Likewise of each group by itself: no key belongs to two of them."""
    words: list[str] = []
    for group, default in config.chosen.items():
        choices = config.choices(group)
        if group in NEVER or not choices:
            continue

        package = f"{config.package(group)}."
        recorded = {key: value for key, value in given.items() if key.startswith(package)}
        distance = {choice: apart(recorded, keys_of(config, group, choice)) for choice in choices}
        best = min(choices, key=lambda choice: (distance[choice], choice != default))
        words += [] if best == default else [f"{group}={best}"]
    return tuple(words)


def keys_of(config: CommandConfig, group: str, choice: str) -> dict[str, Any]:
    """The keys that a choice of a group brings."""
    file = config.file_of(group, choice)
    content = {} if file is None else content_of(file)
    return {key: value for key, value in flat(content, f"{config.package(group)}.").items() if value != {}}


def apart(given: dict[str, Any], usual: dict[str, Any]) -> int:
    """In how many keys two flat configs differ."""
    return sum(not same(given.get(key, MISSING), usual.get(key, MISSING)) for key in given | usual)


def same(value: Any, usual: Any) -> bool:
    """Whether a recorded value may be what the files have: their interpolations were resolved when it was recorded."""
    return value == usual or (isinstance(usual, str) and "${" in usual)


def differences(given: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """The overrides that lead from one flat config to another: KEY=VALUE, +KEY=VALUE, ~KEY.

    A key that only the files have is removed where its node is another class's. Elsewhere it came with a later version
    of ldm than the run's.
    """
    words = []
    for key, value in given.items():
        if not same(value, usual.get(key, MISSING)):
            words.append(f"{'' if key in usual else '+'}{key}={word(value)}")
    for key in usual.keys() - given.keys():
        node = key.rpartition(".")[0]
        target = f"{node}._target_"
        if node and given.get(target, usual.get(target)) != usual.get(target):
            words.append(f"~{key}")
    return words
