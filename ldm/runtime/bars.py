"""Progress bars of one line, and log lines that keep off them.

A bar is drawn on a terminal alone: a file or a pipe gets the log lines, and nothing that was meant to be overwritten.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

T = TypeVar("T")


class TimeLeft(ProgressColumn):
    """The time that is left: the task's field `left`, in seconds, where it has one, else by its pace so far."""

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds, or a dash while nobody knows."""
        left = task.fields.get("left", task.time_remaining)
        return Text("-" if left is None else f"{duration(left)} left", style="progress.remaining")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 0:00:07, 51:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def one_line_bar(*more: ProgressColumn, hidden: bool = False) -> Progress:
    """What is done, a bar, how much of how many, whatever `more` shows, and the time left: in one line, cut where the
    terminal is narrow. Hidden, it is not drawn, as it is where there is no terminal."""
    console = get_console()
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        *more,
        TimeLeft(table_column=Column(no_wrap=True)),
        expand=True,
        refresh_per_second=4,
        disable=hidden or not (console.is_terminal or console.is_jupyter),
    )


@contextmanager
def shown(progress: Progress) -> Iterator[Progress]:
    """Show a bar. What is logged or printed meanwhile stands on lines of its own above it.

    While a bar is live, rich has put itself in the place of sys.stdout and sys.stderr; log handlers that had taken hold
    of these before would write into the bar, so they are given rich's.
    """
    before = {id(stream): name for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr))}
    with progress:
        moved = [(handler, handler.stream) for handler in _stream_handlers() if id(handler.stream) in before]
        for handler, stream in moved:
            handler.setStream(getattr(sys, before[id(stream)]))
        try:
            yield progress
        finally:
            for handler, stream in moved:
                handler.setStream(stream)


def _stream_handlers() -> list[logging.StreamHandler]:
    """The handlers that write to a stream, of every logger that there is."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]


def track(items: Iterable[T], description: str, *, total: int | None = None, hidden: bool = False) -> Iterator[T]:
    """Go through items under a bar.

    items        what is gone through
    description  what is done, a word or two
    total        how many there are; None where items have a length
    hidden       no bar, as on every rank but the first
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with shown(one_line_bar(hidden=hidden)) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)
