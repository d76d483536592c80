"""What conf/ offers a command, read from the yaml files: its groups and their choices, its keys, values and comments.

Help, completion and error messages use it. Hydra composes what a command runs with; this file knows what Hydra does not
keep, the comments and the command that an experiment is for, and imports nothing but yaml, since a shell waits for it.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ldm.commands.docstrings import said_of_arguments

PACKAGED, CHECKOUT = Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf"
OF_ONE_COMMAND = ("experiment", "sweep")  # groups whose files name their command in their second line
BUILT_BY_NAME = {  # nodes whose class never varies
    "autoencoder": "ldm.models.autoencoder.Autoencoder",
    "schedule": "ldm.training.schedule.Schedule",
    "disc_schedule": "ldm.training.schedule.Schedule",
    "guard": "ldm.training.gradients.StepGuard",
    "disc_guard": "ldm.training.gradients.StepGuard",
    "health": "ldm.training.health.Health",
    "discriminator": "ldm.models.discriminator.PatchDiscriminator",
    "objective": "ldm.diffusion.objective.Objective",
    "objective.sampling": "ldm.diffusion.sampling.Sampling",
    "sampler": "ldm.diffusion.sampling.Sampling",
    "loss": "ldm.losses.autoencoder_loss.AutoencoderLoss",
}
ESTIMATED = ("train-autoencoder", "cache-latents", "train-diffusion", "sample")  # commands that `ldm estimate` knows
LIKE = {"probe": "train-autoencoder"}  # ldm probe takes all that ldm train-autoencoder takes


def conf_folder() -> Path:
    """The folder of the configuration files: the installed package's, or the checkout's."""
    return PACKAGED if PACKAGED.is_dir() else CHECKOUT


@dataclass(frozen=True)
class CommandConfig:
    """A command's configuration, as its files and the chosen groups have it.

    Args:
        command: `train-diffusion`.
        folders: where configuration files are looked for; the first that has one wins.
        words: overrides of a command line; those that choose a group count, the first choice of a sweep's.
    """

    command: str
    folders: tuple[Path, ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, command: str, words: list[str]) -> "CommandConfig":
        """words: a command line, with Hydra's flags: --config-dir is looked into, too."""
        given = [Path(value) for flag, value in pairwise(words) if flag in ("--config-dir", "-cd")]
        given += [Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir=")]
        return cls(command, (*given, conf_folder()), tuple(words))

    @cached_property
    def primary_files(self) -> list[Path]:
        """conf/COMMAND.yaml and the files that it is built on, the innermost first."""

        def built_on(file: Path) -> list[Path]:
            names = [entry for entry in _defaults(file) if isinstance(entry, str) and entry != "_self_"]
            return [*(inner for name in names for inner in built_on(self._file(name))), file]

        return built_on(self._file(self.command.replace("-", "_")))

    @cached_property
    def chosen(self) -> dict[str, str | None]:
        """The choice of each group that the command has; None where nothing is chosen."""
        chosen: dict[str, str | None] = {}
        for file in reversed(self.primary_files):  # the command's own groups first, those of all commands last
            for entry in _defaults(file):
                chosen |= entry if isinstance(entry, dict) else {}
        given = dict(word.split("=", 1) for word in self.words if "=" in word)
        given = {group: value.split(",")[0] for group, value in given.items() if group in chosen}
        experiment = self.file_of("experiment", given.get("experiment", chosen.get("experiment")))
        if experiment is not None:
            for entry in _defaults(experiment):
                if isinstance(entry, dict):
                    chosen |= {key.removeprefix("override /"): choice for key, choice in entry.items()}
        return chosen | {group: None if choice == "null" else choice for group, choice in given.items()}

    def file_of(self, group: str, choice: str | None) -> Path | None:
        """The file of a group's choice; None where there is none."""
        files = [folder / group / f"{choice}.yaml" for folder in self.folders]
        return next((file for file in files if file.is_file()), None)

    def package(self, group: str) -> str:
        """Where the keys of the chosen file stand: at the group's name, or as its first line says; "" for all over."""
        file = self.file_of(group, self.chosen.get(group))
        named = re.match(r"# @package (\S+)", file.read_text()) if file is not None else None
        return group if named is None else named[1].replace("_global_", "")

    def choices(self, group: str) -> list[str]:
        """The choices of a group; of experiments and sweeps, those that are for this command."""
        files = [file for folder in self.folders for file in sorted((folder / group).glob("*.yaml"))]
        if group in OF_ONE_COMMAND:
            files = [file for file in files if command_of(file) in (None, self.command, LIKE.get(self.command))]
        return list(dict.fromkeys(file.stem for file in files))

    @cached_property
    def _parts(self) -> list[tuple[str, Path]]:
        """Prefix of the keys, and each file, in the order of merging."""

        def of(file: Path) -> Iterator[tuple[str, Path]]:
            entries = _defaults(file)
            for entry in entries if "_self_" in entries else [*entries, "_self_"]:
                if entry == "_self_":
                    yield "", file
                elif isinstance(entry, str):
                    yield from of(self._file(entry))
                else:
                    for group in entry:
                        if (chosen := self.file_of(group, self.chosen[group])) is not None:
                            yield f"{package}." if (package := self.package(group)) else "", chosen

        return list(of(self.primary_files[-1]))

    @cached_property
    def keys(self) -> dict[str, Any]:
        """{"net.dropout": 0.0}: each key with its value, without Hydra's own; interpolations as they are written."""
        config: dict[str, Any] = {}
        for prefix, file in self._parts:
            content = content_of(file)
            _merge(config, {prefix[:-1]: content} if prefix else content)
        shown = {
            k: v for k, v in config.items() if k not in ("hydra", "defaults") and not (v == {} and k in self.chosen)
        }
        return dict(_flat(shown))

    @cached_property
    def comments(self) -> dict[str, str]:
        """{"guard": "..."}: what is said of each key: its comment where it is first explained, or else the docstring's
        entry of the argument that it is."""
        comments: dict[str, str] = {}
        for prefix, file in self._parts:
            said = comments_of(file.read_text())
            comments = {f"{prefix}{key}": text for key, text in said.items()} | comments
        ends = "._target_"
        targets = BUILT_BY_NAME | {k.removesuffix(ends): v for k, v in self.keys.items() if k.endswith(ends)}
        for node, target in targets.items():
            comments = {f"{node}.{name}": text for name, text in said_of_arguments(target).items()} | comments
        return comments

    def value(self, key: str) -> Any:
        """The value of a key, with what the command line gives it."""
        given = [word.partition("=")[2] for word in self.words if word.lstrip("+~").startswith(f"{key}=")]
        return given[-1] if given else self.keys.get(key)

    @cached_property
    def help(self) -> dict[str, str]:
        """header: what the command does; footer: examples."""
        text: dict[str, str] = content_of(self.primary_files[-1])["hydra"]["help"]
        return text

    def _file(self, name: str) -> Path:
        return next(file for folder in self.folders if (file := folder / f"{name}.yaml").is_file())


def of_estimate(command: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The words of `ldm estimate COMMAND WORDS` that are its own, and those of the command: a key that both have is the
    command's."""
    own = CommandConfig.of("estimate", [])
    theirs = CommandConfig.of(command, [])
    groups = own.chosen.keys() - theirs.chosen.keys()
    keys = {key for key in own.keys if "." not in key} - {key.partition(".")[0] for key in theirs.keys}

    def is_own(each: str) -> bool:
        key = each.partition("=")[0].lstrip("+~")
        parents = {own.package(group) for group in groups}
        return key in keys or key in groups or ("." in key and key.partition(".")[0] in parents and key in own.keys)

    return [each for each in words if is_own(each)], [each for each in words if not is_own(each)]


def word(value: Any) -> str:
    """A value as a command line gives it to Hydra: null, true, [1,2], {a:1}, text, 'text with spaces'."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{word(inner)}' for key, inner in value.items())}}}"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./:+-]*", value, re.ASCII)
    if not isinstance(value, str) or (plain and value.lower() not in ("null", "true", "false", "nan", "inf")):
        return str(value)
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)  # a backslash before a quote
    return f"'{escaped}'"


def command_of(file: Path) -> str | None:
    """The command in the second line of an experiment's or a sweep's file, `# ldm COMMAND ...`.

    None where the file names none, or any of them: COMMAND to the letter.
    """
    lines = file.read_text().splitlines()
    named = re.match(r"# ldm ([\w-]+)", lines[1]) if len(lines) > 1 else None
    return named[1] if named and named[1] != "COMMAND" else None


def head_of(file: Path) -> str:
    """What a file says of itself: the comment in its first lines, without `@package` and the command."""
    lines = iter(file.read_text().splitlines())
    said = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "# ldm ")):
            said.append(line.lstrip("# "))
    return " ".join(said)


def comments_of(text: str) -> dict[str, str]:
    """{"guard.clip": "largest gradient norm"}: the comment of each key of a yaml file that has one.

    It stands at the end of the line where the key starts, or fills the lines right above the key. Of several keys in
    one line, {a: 1, b: 2}, it is the outermost one's. The first lines of a file are about the file, not about a key.
    """
    lines, ends = text.splitlines(), _ends_of_code(text)
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comments: dict[str, str] = {}
    explained: set[int] = set()
    for key, line in _places(yaml.compose(text)):
        if line in explained:
            continue
        explained.add(line)
        above = line
        while above > head and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        parts = [*lines[above:line], lines[line][ends[line] :]]
        if said := " ".join(part for part in (part.strip().lstrip("# ") for part in parts) if part):
            comments[key] = said
    return comments


def _ends_of_code(text: str) -> dict[int, int]:
    """The column after the last token that ends in each line: what follows it is a comment."""
    ends: dict[int, int] = {}
    for token in yaml.scan(text):
        if token.start_mark.index < token.end_mark.index:  # the others mark the ends of blocks
            ends[token.end_mark.line] = max(ends.get(token.end_mark.line, 0), token.end_mark.column)
    return ends


def _places(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Each key of a mapping with the line where it stands, outer keys before inner ones."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line
            yield from _places(value, f"{name}.")


def content_of(file: Path) -> dict[str, Any]:
    """A yaml file as plain data, to be read and not changed."""
    return _parsed(file, file.stat().st_mtime_ns)


@cache
def _parsed(file: Path, when: int) -> dict[str, Any]:  # noqa: ARG001  a file that has changed since is read again
    return yaml.safe_load(file.read_text()) or {}


def _defaults(file: Path) -> list[Any]:
    defaults: list[Any] = content_of(file).get("defaults", [])
    return defaults


def _merge(config: dict[str, Any], more: dict[str, Any]) -> None:
    """Lay `more` over a config, dicts into dicts; all else replaces what was there."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = copy.deepcopy(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
