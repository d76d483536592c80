"""A user's mistakes that Hydra finds, each in one line that names the key and the fix instead of in Hydra's words.

The one file that knows what Hydra, OmegaConf and submitit say of wrong command lines. Its tests fail when they change.
"""

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator
from subprocess import CalledProcessError
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import MissingConfigException, OverrideParseException

from ldm.commands.config_files import OF_ONE_COMMAND, CommandConfig, command_of, conf_folder
from ldm.commands.error_lines import is_a_librarys, is_said, one_line

FLAGS = ("--run", "--cfg", "--info", "--package", "--resolve")  # Hydra's that look as if they were keys
NO_SLURM = 'Could not detect "srun"'  # submitit's words
MULTIRUN = {"-m", "--multirun"}
SWEEPS = ("sweep", "launcher")  # groups that do nothing without -m
EXTRA = "pip install 'ldm[sweep]'"


def check_command_line(command: str, words: list[str], within: str | None = None) -> None:
    """Refuse what can be told before Hydra composes: what is no flag, no key, or for another command.

    within: the command that calls this one, if any: it hands its own choices on, as `ldm probe` its experiment

    Raises:
        ValueError: naming the word, and what to write instead.
    """
    config = CommandConfig.of(command, words)

    def refuse(message: str) -> NoReturn:
        flag = re.search(r"(--?[\w-]+)\S*$", message.removesuffix("'")) or re.search(r"(--?[\w-]+)", message)
        name = flag[1] if flag else message
        raise ValueError(f"{name} is no flag: ldm {command} --help lists keys and groups, which take no dashes")

    for word in words:
        dashed, equals, value = word.partition("=")
        key = dashed.lstrip("-").replace("-", "_")
        if dashed.startswith("--") and (equals or dashed not in FLAGS) and key in config.keys:
            raise ValueError(f"{word} is no flag: write {key}={value if equals else 'VALUE'}")
        if dashed.startswith(("/", "=")) or (equals and not dashed):
            raise ValueError(
                f"{word} names no key: write KEY=VALUE" + f", as {word.lstrip('/')}" * word.startswith("/")
            )
    if "launcher" not in config.chosen and MULTIRUN & set(words):
        raise ValueError(f"ldm {command} cannot be swept: leave -m out")
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    if parser.parse_args(words).shell_completion:
        raise ValueError('completion is for ldm as a whole: eval "$(ldm --completion bash)" (or zsh, fish)')
    for group in OF_ONE_COMMAND:
        for word in (word for word in words if word.startswith(f"{group}=")):
            for choice in word.partition("=")[2].split(","):
                _check_its_command(config, group, choice, within)
    for word in words:
        group, _, choice = word.partition("=")
        if group in SWEEPS and group in config.chosen and choice not in ("", "null") and not MULTIRUN & set(words):
            raise ValueError(f"{word} is for a sweep, and would do nothing here: pass -m, too")


def _check_its_command(config: CommandConfig, group: str, choice: str, within: str | None) -> None:
    file = config.file_of(group, choice)
    if file is not None and choice not in config.choices(group) and (its := command_of(file)) != within:
        raise ValueError(f"{group}={choice} is for another command: ldm {its} {group}={choice}")


def is_users(error: BaseException) -> bool:
    """Whether the user can mend it; any other exception is a fault of this package, whose stack trace is wanted.

    But for BrokenPipeError, which is nobody's fault: see `cli.main`.
    """
    if isinstance(error, BrokenPipeError):
        return False
    return is_said(error) or _launcher(error) is not None or is_a_librarys(error)


def explain(error: BaseException, command: str, words: list[str]) -> str:
    """The mistake in one line, with the fix where one is known.

    Args:
        error: what was raised.
        command: `train-diffusion`.
        words: the command line after it.
    """
    for cause in _chain(error):
        for read in READERS:
            if (said := read(cause, CommandConfig.of(command, words))) is not None:
                return said
    if is_said(error) or not is_a_librarys(error):
        return one_line(error)
    while_what = " ".join(getattr(error, "__notes__", [])[:1])
    kind = type(error).__name__
    full = isinstance(error, MemoryError) or kind == "OutOfMemoryError"
    advice = "lower batch_size=; " if full else ""
    prefix = f"{while_what}: " if while_what else ""
    return f"{prefix}{kind}: {one_line(error)} ({advice}HYDRA_FULL_ERROR=1 shows where)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _unreadable(error: BaseException, config: CommandConfig) -> str | None:
    """What Hydra's grammar cannot read: no =, or a value that needs quotes."""
    if not isinstance(error, OverrideParseException):
        return None
    key, equals, value = error.override.partition("=")
    if not equals:
        return f"{error.override} is neither a flag nor KEY=VALUE: ldm {config.command} --help lists the keys"
    sweeps = bool(MULTIRUN & set(config.words)) and "," in value and not set("'\"[]{}()") & set(value)
    each = " each" if sweeps or value.startswith("[") else " the"
    fixed = shlex.quote(f"{key}={_quoted(value, sweeps)}")
    return f"{error.override} cannot be read: quote{each} value, for Hydra and for the shell: {fixed}"


def _quoted(value: str, several: bool = False) -> str:
    """A value that Hydra takes as it stands; a list, or a sweep's several values, each of them."""
    a_list = value.startswith("[") and value.endswith("]")
    if a_list or several:
        parts = re.split(r",(?![^\[]*\])", value[1:-1] if a_list else value)  # not at commas within brackets
        each = ",".join(map(_quoted, parts))
        return f"[{each}]" if a_list else each
    text = value.strip("'\"").replace('"', '\\"')
    return f'"{text}"'


def _several_values(error: BaseException, config: CommandConfig) -> str | None:
    """Values with commas between them, without -m."""
    match = re.match(r"Ambiguous value for argument '(.*?)=(.*)'\n", str(error))
    if not match:
        return None
    key, value = match.groups()
    a_list = f", or {key}=[{value}] for a list" if isinstance(config.keys.get(key), list) else ""
    quoted = shlex.quote(f"{key}={_quoted(value)}")
    text = "" if key in config.chosen else f", or {quoted} for a text with commas"
    return f"{key}={value} names several values: pass -m to run the command with each of them{a_list}{text}"


def _unknown_choice(error: BaseException, config: CommandConfig) -> str | None:
    if not isinstance(error, MissingConfigException) or not error.missing_cfg_file:
        return None
    group, _, choice = error.missing_cfg_file.rpartition("/")
    if group.startswith("hydra/"):  # a plugin of Hydra's that is not installed; ours are named in a file of conf/
        key, plugin = group.removeprefix("hydra/"), choice.removeprefix("submitit_")
        asked = next(
            (word for word in config.words if word in (f"launcher={plugin}", f"sweep={plugin}")),
            f"{key}={choice}",
        )
        return f"{asked} needs a package that is not installed: {EXTRA}"
    there = config.choices(group)
    near = difflib.get_close_matches(choice, there, 1)
    meant = f"did you mean {near[0]}? There are" if near else "there are"
    return f"{group}={choice} is no choice of ldm {config.command}: {meant} {', '.join(there) or 'none'}"


def _unknown_key(error: BaseException, config: CommandConfig) -> str | None:
    """An override of what is not there: a group, or a key."""
    match = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", str(error))
    if not match or isinstance(error, MissingConfigException):
        return None
    key = match[1]
    group, _, rest = key.partition(".")
    if group.startswith("hydra"):
        return f"{key} is no key of Hydra's in this version, or of the launcher or sweeper that is chosen"
    if group not in config.chosen and group not in config.keys and (conf_folder() / group).is_dir():
        return f"{key}: ldm {config.command} has no group {group}; it has {', '.join(_groups(config))}"
    group = next((one for one in config.chosen if config.package(one) == group), group)
    if rest and group in config.chosen and (others := _choices_with(config, group, key)):
        either = f" (or {', '.join(others[1:])})" if others[1:] else ""
        chosen = config.chosen[group]
        return f"{group}={chosen} has no {rest}: pass {group}={others[0]}{either} {key}={config.value(key)}"
    if group == "trainer" and rest:
        added = f"+{key}={config.value(key)}"
        return f"{key} is no key of conf/trainer: an argument of Lightning's Trainer is added by {added}"
    return f"{key} is no key of ldm {config.command}: {_nearest(key, config)}"


def _groups(config: CommandConfig) -> Iterable[str]:
    return (group for group in config.chosen if config.choices(group))


def _choices_with(config: CommandConfig, group: str, key: str) -> list[str]:
    """The choices of a group that have this key."""
    others = [word for word in config.words if not word.startswith(f"{group}=")]
    return [
        choice
        for choice in config.choices(group)
        if key in CommandConfig(config.command, config.folders, (*others, f"{group}={choice}")).keys
    ]


def _nearest(key: str, config: CommandConfig) -> str:
    """The keys that may have been meant: of the same last part, beside it, or of similar letters."""
    keys = [*config.keys, *_groups(config)]
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in config.keys if name.rpartition(".")[0] == parent}
    near = [name for name in keys if name.rpartition(".")[2] == last][:3]
    near = near or [beside[name] for name in difflib.get_close_matches(last, beside, 2, cutoff=0.7)]
    near = near or difflib.get_close_matches(key, keys, 3, cutoff=0.75)
    if near:
        return f"did you mean {' or '.join(near)}?"
    within = [name for name in config.keys if name.startswith(f"{key.partition('.')[0]}.")]
    return f"there are {', '.join(within)}" if within else f"ldm {config.command} --help lists them"


def _there_already(error: BaseException, config: CommandConfig) -> str | None:  # noqa: ARG001
    match = re.search(r"Could not append to config\. .*\nEither remove \+ prefix: '(.*?)=", str(error))
    return f"{match[1]} has a value already: pass {match[1]}=, without the +" if match else None


def _missing(error: BaseException, config: CommandConfig) -> str | None:
    """A key whose value is ??? in conf/."""
    match = re.search(r"Missing mandatory value: \S+\n?\s*full_key: (\S+)", str(error))
    if not match:
        return None
    said = config.comments.get(match[1])
    return f"{match[1]} has no value: pass {match[1]}=..." + (f" ({said})" if said else "")


def _no_such_interpolation(error: BaseException, config: CommandConfig) -> str | None:  # noqa: ARG001
    match = re.match(r"Interpolation key '(.+?)' not found\n\s*full_key: (\S+)", str(error))
    return f"{match[2]} refers to ${{{match[1]}}}, and there is no key {match[1]}" if match else None


def _wrong_type(error: BaseException, config: CommandConfig) -> str | None:  # noqa: ARG001
    """Of what Hydra has types for: its launchers' and sweepers' keys."""
    match = re.match(r"(?s)Error merging override (\S+)", str(error))
    if not match or error.__cause__ is None:
        return None
    return f"{match[1]}: {one_line(error.__cause__)}"


def _no_interval(error: BaseException, config: CommandConfig) -> str | None:  # noqa: ARG001
    if "does not support sweep type" not in str(error):
        return None
    return "an interval is for sweep=optuna, which searches it; without, name the values: KEY=A,B"


def _no_point_finished(error: BaseException, config: CommandConfig) -> str | None:
    if "No trials are completed yet" not in str(error):
        return None
    return f"none of the sweep's points has finished: ldm summarize run={config.value('run')} says why each failed"


def _launcher(error: BaseException, config: CommandConfig | None = None) -> str | None:  # noqa: ARG001
    """What submitit raises where it cannot submit, or where a job of the sweep has died."""
    said = " ".join(str(error).split())
    if NO_SLURM in said:
        return "launcher=slurm needs sbatch and srun, which are not here: run it where they are, or pass launcher=null"
    if not type(error).__module__.startswith("submitit"):
        return None
    if could_not_launch(error):  # in sbatch's own words
        return (
            f"launcher=slurm: sbatch refuses the jobs ({said}): hydra.launcher.gpus_per_node= (null without GPUs), "
            ".cpus_per_task=, .mem_gb=, .timeout_min= and .partition= must be what the cluster has"
        )
    return f"launcher=slurm: {str(error).splitlines()[0]}: its logs lie in RUN/.submitit"


def could_not_launch(error: BaseException) -> bool:
    """Whether no job of the sweep was submitted, by submitit's account."""
    of_sbatch = type(error).__module__.startswith("submitit") and isinstance(error.__cause__, CalledProcessError)
    return of_sbatch or NO_SLURM in str(error)


READERS = (
    _unreadable,
    _several_values,
    _unknown_choice,
    _unknown_key,
    _there_already,
    _missing,
    _no_such_interpolation,
    _wrong_type,
    _no_interval,
    _no_point_finished,
    _launcher,
)
