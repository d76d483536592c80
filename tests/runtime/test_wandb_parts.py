"""What is cut from the file of a part of wandb's that was killed; test_wandb_sync.py has files of wandb's own."""

from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import (  # type: ignore[attr-defined]  # made by protobuf
    HistoryItem,
    HistoryRecord,
    OutputRecord,
    Record,
)

from ldm.runtime.wandb_parts import BLOCK, HEADER, is_empty, keep_rows_before, row_number


def row(batch, *, trains=True, long=0):
    """Record of the row after `batch` batches."""
    told = "train/loss" if trains else "val/loss"
    items = [HistoryItem(nested_key=["trainer/global_step"], value_json=str(batch - 1))]
    items += [HistoryItem(key=told, value_json="1.5"), HistoryItem(key="note", value_json='"' + long * "x" + '"')]
    return Record(history=HistoryRecord(item=items)).SerializeToString()


def written(folder, records):
    """A file of these records, and where each ends."""
    data, ends = bytearray(b":W&B\xe1\xbe\x00"), []
    for record in records:
        first = True
        while record or first:
            room = BLOCK - len(data) % BLOCK
            if room < HEADER:
                data += bytes(room)
                continue
            piece, record = record[: room - HEADER], record[room - HEADER :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            data += bytes(4) + len(piece).to_bytes(2, "little") + bytes([kind]) + piece
            first = False
        ends.append(len(data))
    folder.mkdir()
    (folder / "run.wandb").write_bytes(data)
    return folder / "run.wandb", ends


def test_of_a_file_that_is_cut_anywhere_the_whole_records_stay(tmp_path):
    records = [Record(output=OutputRecord(line="hello")).SerializeToString()]
    records += [row(n, long=9000 * n) for n in range(1, 6)]  # across blocks
    file, ends = written(tmp_path / "part", records)
    data = file.read_bytes()
    for size in [HEADER, *(end + more for end in ends for more in (-20, -1, 0, 3, 8000)), len(data)]:
        file.write_bytes(data[: max(size, HEADER)])
        whole = [n for n, end in enumerate(ends) if end <= size]
        last = keep_rows_before(tmp_path / "part", 1000)
        assert last == (2 * whole[-1] if whole else 0)
        assert file.read_bytes() == data[: ends[whole[-1]] if whole else HEADER]


@pytest.mark.parametrize(
    ("first", "last", "kept"),
    [
        (row_number(2, True), 5, 3),  # batch 3 is trained again
        (row_number(1, False), 4, 2),  # and so is the validation after batch 2
        (row_number(9, True), 8, 5),
    ],
)
def test_rows_that_are_logged_again_are_cut(tmp_path, first, last, kept):
    file, ends = written(tmp_path / "part", [row(1), row(2), row(2, trains=False), row(3), row(4)])
    assert keep_rows_before(tmp_path / "part", first) == last
    assert file.stat().st_size == ends[kept - 1]


def test_so_are_those_that_a_rollback_took_back_and_what_follows_them(tmp_path):
    """metrics.csv has each batch once, and fills what is cut."""
    batches = [*range(1, 101), *range(51, 81)]
    file, ends = written(tmp_path / "part", [row(n) for n in batches])
    assert keep_rows_before(tmp_path / "part", row_number(80, True)) == row_number(49, True)
    assert file.stat().st_size == ends[49]


def test_what_can_not_be_read_ends_a_file(tmp_path):
    file, ends = written(tmp_path / "part", [row(n) for n in range(1, 6)])
    data = bytearray(file.read_bytes())
    data[ends[2] + HEADER : ends[3]] = b"\xff" * (ends[3] - ends[2] - HEADER)
    file.write_bytes(data)
    assert keep_rows_before(tmp_path / "part", 1000) == row_number(2, True)
    assert file.stat().st_size == ends[2]


def test_a_part_is_empty_whose_file_has_a_header_alone(tmp_path):
    file, _ = written(tmp_path / "part", [row(1)])
    assert not is_empty(tmp_path / "part")
    file.write_bytes(file.read_bytes()[:HEADER])
    assert is_empty(Path(tmp_path / "part"))
