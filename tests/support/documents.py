"""What README, docs/ and CONTRIBUTING say: their code blocks, command lines, keys, files and headings."""

import re
import shlex
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from ldm.commands.config_files import of_estimate

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # which says what was, too
OF_THIS_PROJECT = [path for path in CURRENT if path.name != "extending.md"]  # which test_extension.py runs

# first words of shell lines that are no command of this project
ELSEWHERE = {"git", "cd", "source", "diff", "pytest", "pip", "GLIBC_TUNABLES"}


class CommandLine(NamedTuple):
    """A command with its overrides, as a document has it."""

    where: str
    command: str
    overrides: list[str]


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block; language "" where none is named, "indented" for indented ones."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [(match[1], match[2]) for match in fenced.finditer(text)]
    rest = fenced.sub("", text)
    indented = re.findall(r"(?:^|\n\n)((?: {4}.*\n)+)", rest)
    return found + [("indented", re.sub(r"^ {4}", "", block, flags=re.MULTILINE)) for block in indented]


def spans(text: str) -> list[str]:
    """The contents of `code spans`, outside blocks; a span that is broken over two lines is joined."""
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", rest)]


def is_shell(block: str) -> bool:
    """Whether an indented or unnamed block holds command lines, not equations, trees or diagrams."""
    first = r"(?:ldm|python|torchrun|sbatch|jobs/\S+|make|git|pytest|pre-commit)\s"
    return re.match(rf"(?:[A-Z_]+=\S+ )*{first}", block) is not None


def shell_lines(text: str) -> list[str]:
    """The command lines of a document: those of its shell blocks, and the code spans that start with `ldm`."""
    lines = []
    for language, block in blocks(text):
        if language in ("sh", "bash") or (language in ("", "indented") and is_shell(block)):
            lines += block.replace("\\\n", " ").splitlines()
    lines += [span for span in spans(text) if re.match(r"(python -m )?ldm [a-z-]+ .*=", span)]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def lines_of_comments(text: str) -> list[str]:
    """The command lines in the comments of a file of conf/ or jobs/, and in a command's --help."""
    joined = re.sub(r"\\\n#? *", " ", text)
    first = r"(?:ldm (?!.*--compare)[a-z-]+|torchrun|python -m ldm|sbatch|jobs/pipeline\.sh)"
    return [line.rsplit("     ")[0] for line in re.findall(rf"^#? +({first} .*)", joined, re.MULTILINE)]


def commands_of(path: Path) -> list[CommandLine]:
    """Each `ldm` command of a document, or of the comments of another file, however it is started.

    Raises:
        ValueError: for a line of a shell block that starts with an unknown word.
    """
    found = []
    text = path.read_text()
    for line in shell_lines(text) if path.suffix == ".md" else lines_of_comments(text):
        where = f"{path.name}: {line}"
        for part in re.split(r"\s&&\s", line):
            words = shlex.split(part, comments=True)
            settings = {}
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                settings[name] = shlex.split(value)
            found += [CommandLine(where, *one) for one in commands_in(words, settings)]
    return found


def commands_in(words: list[str], settings: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """(command, overrides) of one simple shell command; settings are the variables that stand before it."""
    if not words:
        return []
    if words[0] == "ldm":
        if words[1] == "estimate":  # its own words, and those of the command that it is about
            own, others = of_estimate(words[2], words[3:])
            return [("estimate", own), (words[2], others)]
        return [] if words[1].startswith("-") else [(words[1], words[2:])]
    if words[0] in ("python", "torchrun") and "ldm" in words:
        return [(words[words.index("ldm") + 1], words[words.index("ldm") + 2 :])]
    if words[0] == "sbatch":
        (at,) = [i for i, word in enumerate(words) if word.endswith(".sbatch")]
        return [(Path(words[at]).stem.replace("_", "-"), words[at + 1 :])]
    if words[0] == "jobs/pipeline.sh":
        data = settings.get("DATA", [])
        chain = {
            "AUTOENCODER": ("train-autoencoder", data),
            "LATENTS": ("cache-latents", data),
            "DIFFUSION": ("train-diffusion", []),
            "SAMPLES": ("sample", []),
            "METRICS": ("evaluate", data),
        }
        assert settings.keys() <= chain.keys() | {"DATA", "TRAIN_SBATCH", "ARRAY"}, settings
        return [(command, read + settings.get(name, [])) for name, (command, read) in chain.items()]
    if words[0] in ("python", "make") or words[0] in ELSEWHERE:
        return []
    raise ValueError(f"a shell block starts a line with {words[0]!r}: add it to documents.py, or mend the document")


def points(overrides: list[str]) -> list[list[str]]:
    """The overrides of each point of a sweep; of one without -m, its own. Flags, and their words, are left out."""
    assigned, choices = [word for word in overrides if "=" in word and not word.startswith("-")], []
    for override in OverridesParser.create().parse_overrides(assigned):
        if override.is_choice_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():  # an interval has no first value
            choices.append([str(override.input_line)])
    return [list(point) for point in product(*choices)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
