"""Tables of metrics, as training logs them: metrics.csv."""

import csv
import logging
from pathlib import Path

log = logging.getLogger(__name__)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of metrics, each with its step; [] without one. What can't be read is left out, and said."""
    rows, wrong = readable_rows(path)
    if wrong:
        log.warning("%s", wrong)
    return rows


def readable_rows(path: Path) -> tuple[list[dict[str, str]], str]:
    """The rows that can be read, and what to say of the others; "" where there are none."""
    if not path.is_file():
        return [], ""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        # a field longer than csv takes, of a quote that is never closed, is no number
        lines = [line.replace("\0", "").replace('"', "") for line in file]
        rows = list(csv.DictReader(line for line in lines if len(line) < csv.field_size_limit()))
    readable = [
        {key: value for key, value in row.items() if key and isinstance(value, str)}
        for row in rows
        if (row.get("step") or "").isdecimal()
    ]
    unread = [row for row in rows if row.get("step") != "" and not (row.get("step") or "").isdecimal()]
    if not unread:
        return readable, ""
    return readable, f"{path} is damaged: {len(unread)} of its {len(rows)} rows can't be read, and are left out"


def number(text: str | None) -> float | None:
    """A number as a table has it; None for what is none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None
