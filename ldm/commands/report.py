"""One page of a run and of all that it was made from: RUN/report.html.

It makes no run, so that it has no run folder, and Hydra composes nothing for it.
"""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from omegaconf import DictConfig

from ldm.commands.config_files import CommandConfig
from ldm.commands.error_lines import USER_ERRORS, one_line
from ldm.commands.options import Group, Text, parsed
from ldm.commands.recipes import lineage_of
from ldm.report.facts import Lineage
from ldm.report.page import page
from ldm.report.places import PAGE
from ldm.report.words import amount
from ldm.runtime.files import atomic_write


class ReportOptions(Group):
    """conf/report.yaml, which says what each key means."""

    source: Text
    out: Text | None

    @classmethod
    def parse(cls, config: DictConfig) -> Self:
        """The options of a composed config; ValueError as `of` has it."""
        return parsed(cls, config)[0]


def report(words: Sequence[str]) -> None:
    """Run `ldm report WORDS`: a mistake ends in one line and exit status 1."""
    try:
        main(options_of(words))
    except USER_ERRORS as error:
        sys.exit(f"ldm: error: {one_line(error)}")


def options_of(words: Sequence[str]) -> ReportOptions:
    """The options that a command line gives: a run folder, source= or out=.

    Raises:
        ValueError: for a word that is none of them, or one that is given twice.
    """
    usual = CommandConfig.of("report", []).keys
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise ValueError(f"{word} is no flag of ldm report: write ldm report RUN, or ldm report RUN out=FILE")
        if not equals or Path(word).exists():  # a point of a sweep has = in its name
            key, value = "source", word
        if key not in usual:
            near = difflib.get_close_matches(key, usual, 1)
            meant = f"did you mean {near[0]}=?" if near else f"there are {', '.join(f'{name}=' for name in usual)}"
            raise ValueError(f"ldm report has no {key}=: {meant}")
        if key in given:
            raise ValueError(f"{word} is one too many: ldm report takes one run, as ldm report {given['source']}"
                             if key == "source" else f"{word} is one too many: a page has one file")  # fmt: skip
        if not value:
            raise ValueError(f"{word} names nothing: write {key}=PATH")
        given[key] = value
    return ReportOptions.of(usual | given)


def main(options: ReportOptions) -> None:
    run = Path(options.source)
    file = run / PAGE if options.out is None else Path(options.out)
    if file.is_dir():
        raise ValueError(f"out={file} is a folder: name a file, as out={file / PAGE}")
    below = Path("runs", options.source)
    if not run.exists() and below.is_dir():
        raise ValueError(f"{run} does not exist: did you mean {below}?")
    lineage = lineage_of(run)
    html = page(lineage).encode()
    with atomic_write(file) as stream:
        stream.write(html)
    say(lineage, file, len(html))


def say(lineage: Lineage, file: Path, size: int) -> None:
    """Print what the page is of, and what it lacks."""
    for problem in (*lineage.problems, *(problem for stage in lineage.stages for problem in stage.problems)):
        print(f"ldm: warning: {problem}", file=sys.stderr)
    runs = ", ".join(str(stage.run) for stage in lineage.stages)
    print(f"{file}: {amount(size, 'B')}, of {runs}")
