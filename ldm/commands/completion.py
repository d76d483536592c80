"""Completion: `ldm --completion bash` prints a function for the shell, which asks `ldm --complete` for candidates."""

import shlex
from pathlib import Path

from ldm.commands.config_files import ESTIMATED, CommandConfig, of_estimate

TAKES_A_PATH = ("report",)  # as a word of its own

# each calls `ldm --complete LINE`, LINE being the command line up to the cursor, for one candidate a line
SCRIPTS = {
    "bash": """\
_ldm_complete() {
    local line=${COMP_LINE:0:COMP_POINT} word typed= candidate
    word=${line##*[[:space:]]}
    case $COMP_WORDBREAKS in *=*) typed=${word%"${word##*[=:]}"} ;; esac  # bash replaces only what follows these
    COMPREPLY=()
    while IFS= read -r candidate; do
        case $candidate in *[=./,]) ;; *) candidate+=" " ;; esac
        COMPREPLY+=("${candidate#"$typed"}")
    done < <("${COMP_WORDS[0]}" --complete "$line" 2>/dev/null)
}
complete -o nospace -F _ldm_complete ldm
""",
    "zsh": """\
_ldm_complete() {
    local -a candidates=("${(@f)$("${words[1]}" --complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    candidates=(${candidates:#})
    compadd -Q -S '' -- ${(M)candidates:#*[=./,]}
    compadd -Q -- ${candidates:#*[=./,]}
}
compdef _ldm_complete ldm
""",
    "fish": """\
complete --command ldm --no-files --arguments '(ldm --complete (commandline --current-process --cut-at-cursor))'
""",
}


def script(shell: str) -> str:
    """What `eval "$(ldm --completion bash)"` evaluates; ValueError for a shell that is not known."""
    if shell not in SCRIPTS:
        raise ValueError(f"--completion {shell}: the shell must be one of {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def candidates(line: str, commands: list[str]) -> list[str]:
    """What the last word of a command line may become: commands, groups, choices, keys, values, paths.

    A candidate that ends in = . / or , is to be typed on.
    """
    before, word = _words(line)
    if len(before) < 2:
        return [command for command in commands if command.startswith(word)]
    command, words = before[1], before[2:]
    if command not in commands or word.startswith("-"):
        flags = ["--help", "--cfg", "-m"] if command not in TAKES_A_PATH else ["--help"]
        flags = flags if command in commands else []
        return [flag for flag in flags if flag.startswith(word)]
    if command == "estimate":
        return _of_estimate(line, words, word)
    return _of_config(CommandConfig.of(command, words), word)


def _of_estimate(line: str, words: list[str], word: str) -> list[str]:
    """A command that can be estimated, then its keys and groups, and those of `ldm estimate` itself."""
    if not words:
        return [command for command in ESTIMATED if command.startswith(word)]
    theirs = candidates(line.replace("estimate", "", 1), list(ESTIMATED))
    own, _ = of_estimate(words[0], _of_config(CommandConfig.of("estimate", words[1:]), word))
    return [*theirs, *own]


def _of_config(config: CommandConfig, word: str) -> list[str]:
    sign = word[: len(word) - len(word.lstrip("+~"))]
    key, equals, value = word[len(sign) :].partition("=")
    if not equals:
        paths = _values(None, word) if config.command in TAKES_A_PATH else []
        return [f"{sign}{name}" for name in _names(config, key)] + paths
    if config.choices(key) and key in config.chosen:
        earlier, comma, last = value.rpartition(",")
        return [f"{sign}{key}={earlier}{comma}{one}" for one in config.choices(key) if one.startswith(last)]
    return [f"{sign}{key}={one}" for one in _values(config.keys.get(key), value)]


def _words(line: str) -> tuple[list[str], str]:
    """The words before the last one, and the last one, which is empty after a space."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open
        words = line.split()
    return (words, "") if not words or line[-1].isspace() else (words[:-1], words[-1])


def _names(config: CommandConfig, start: str) -> list[str]:
    """Groups, and keys one level at a time: net= and net., then net.dropout=."""
    names = [f"{group}=" for group in config.chosen if config.choices(group)]
    level = start.count(".")
    for key in config.keys:
        parts = key.split(".")
        if len(parts) > level:
            names.append(".".join(parts[: level + 1]) + ("." if len(parts) > level + 1 else "="))
    return [name for name in dict.fromkeys(names) if name.startswith(start)]


def _values(present: object, start: str) -> list[str]:
    """true and false of a switch; else paths, as the shell would complete them."""
    if isinstance(present, bool):
        return [word for word in ("true", "false") if word.startswith(start)]
    folder, slash, name = start.rpartition("/")
    try:
        entries = sorted(Path(f"{folder}{slash}" or ".").expanduser().iterdir())
    except OSError:
        return []
    shown = [entry for entry in entries if entry.name.startswith(name) and (name or not entry.name.startswith("."))]
    return [f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown]
