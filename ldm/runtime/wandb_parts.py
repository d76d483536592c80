"""The files of an offline run of wandb: what they hold, and how what a killed process left of one is cut to size.

They are logs as LevelDB has them: blocks of 32 KiB, filled with pieces of records. wandb writes whole blocks, so that a
file whose process was killed ends in the middle of a record. `wandb sync` then uploads none of the later parts.
"""

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

HEADER = 7  # bytes: of a file, and of each piece of a record, which are checksum (4), length (2), kind (1)
BLOCK = 32768
WHOLE, LAST = 1, 4  # kinds of pieces with which a record ends; 2 and 3 are its first and its middle ones


def is_empty(part: Path) -> bool:
    """Whether wandb was killed before it had written anything into a part's folder."""
    return all(file.stat().st_size <= HEADER for file in part.glob("*.wandb"))


def row_number(step: int, trains: bool) -> int:
    """wandb's step of a row: 2 n of a row of training, 2 n + 1 of a validation, where n - 1 is Lightning's step."""
    return 2 * (step + 1) + (not trains)


def is_of_training(name: str) -> bool:
    """Whether a figure is a batch's, rather than a validation's."""
    return name.startswith(("train/", "speed/"))


def keep_rows_before(part: Path, number: int) -> int:
    """Cut a part's file before its first row from `number` on, or that a rollback took back, or else behind its last
    whole record, and return the number of the last row that stays; 0 without any."""
    last = 0
    for file in part.glob("*.wandb"):
        data = file.read_bytes()
        records = list(_rows(data))
        numbers = [row for _, _, row in records if row is not None]
        first = min([number, *(after for before, after in pairwise(numbers) if after < before)])
        end = HEADER
        for start, stop, row in records:
            if row is not None and row >= first:
                end = start
                break
            last, end = max(last, row or 0), stop
        if end < len(data):
            os.truncate(file, end)
    return last


def _rows(data: bytes) -> Iterator[tuple[int, int, int | None]]:
    """Where each record of a file begins and ends, and the number of the row that it holds, if any; up to the first
    that can't be read."""
    from google.protobuf.message import DecodeError

    try:
        for start, stop, record in _records(data):
            yield start, stop, _row(record)
    except (DecodeError, ValueError, TypeError):
        return


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where each whole record of a file begins and ends, and the record."""
    at = start = HEADER
    pieces = b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # no header fits: zeros fill the block
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += HEADER + length
        if at > len(data) or not WHOLE <= kind <= LAST:
            return
        pieces += data[at - length : at]
        if kind in (WHOLE, LAST):
            yield start, at, pieces
            start, pieces = at, b""


def _row(record: bytes) -> int | None:
    """The number of the row that a record holds; None if it holds something else, or a row that is no batch's."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made by protobuf

    read = Record.FromString(record)
    if read.WhichOneof("record_type") != "history":
        return None
    names = {item.key or "/".join(item.nested_key): item.value_json for item in read.history.item}
    if "trainer/global_step" not in names:
        return None
    return row_number(json.loads(names["trainer/global_step"]), any(map(is_of_training, names)))
