"""Bars of one line, and log lines that stand on their own beside them."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console
from rich.progress import TextColumn

from ldm.runtime import bars


def on_screen(output: str) -> list[str]:
    """What a terminal shows of this output: enough of one for lines that are written over."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            count = int(part[2:-1]) if part[2:-1].isdigit() else 1
            row -= count if part.endswith("A") else 0
            lines[row] = "" if part == "\x1b[2K" else lines[row]
        else:
            old = lines[row].ljust(column)
            lines[row] = old[:column] + part + old[column + len(part) :]
            column += len(part)
    return lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_line_stands_on_a_line_of_its_own_above_the_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)  # here, not in a fixture: pytest changes it in between
    monkeypatch.setattr(bars, "get_console", lambda: Console(width=80, force_terminal=True))
    handler, logger = logging.StreamHandler(stream), logging.getLogger("ldm.tests.bars")
    monkeypatch.setattr(logger, "handlers", [handler])  # it has taken hold of stdout before there was any bar
    monkeypatch.setattr(logger, "propagate", False)  # handlers that other tests' commands have left write elsewhere
    logger.setLevel(logging.INFO)
    for i in bars.track(range(4), "counting"):
        logger.info("seen %d", i)
        print("printed", i)
    assert handler.stream is stream  # given back
    lines = [line.rstrip() for line in on_screen(stream.getvalue())]
    said = [text for i in range(4) for text in (f"seen {i}", f"printed {i}")]
    assert lines[:8] == said
    assert re.fullmatch(r"counting \S+ 4/4 0:00:0\d left", lines[8])
    assert not any(lines[9:])


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_bar_is_one_line_at_any_width(width, monkeypatch):
    console = Console(width=width, force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(bars, "get_console", lambda: console)
    progress = bars.one_line_bar(TextColumn("{task.fields[figures]}"))
    figures = "loss 0.0708 val 0.0963 12345 img/s"
    progress.add_task("validating", total=200_000, completed=123_456, figures=figures, left=184_320.0)
    lines = [line for line in console.render_lines(progress.get_renderable(), pad=False) if line]
    assert len(lines) == 1
    text = "".join(segment.text for segment in lines[0])
    assert len(text) <= width
    if width >= 80:
        assert all(part in text for part in ("validating", "123456/200000", figures, "51:12:00 left"))


def test_a_pipe_and_other_ranks_get_no_bar(monkeypatch):
    for options, hidden in (({"force_terminal": False}, False), ({"force_terminal": True}, True)):
        console = Console(file=io.StringIO(), **options)
        monkeypatch.setattr(bars, "get_console", lambda console=console: console)
        assert list(bars.track(iter("abc"), "spelling", total=3, hidden=hidden)) == ["a", "b", "c"]
        assert console.file.getvalue() == ""


def test_durations():
    assert [bars.duration(s) for s in (0.4, 59.6, 3599, 184_320)] == ["0:00:00", "0:01:00", "0:59:59", "51:12:00"]
