"""Captions of an image folder: metadata.jsonl, as Hugging Face's ImageFolder has it."""

import json
from collections.abc import Collection
from pathlib import Path

METADATA = "metadata.jsonl"  # a line a picture: {"file_name": "cats/1.png", "text": "a sleeping cat"}
MOST = 2000  # bytes of a caption


def read_captions(root: str, names: Collection[str], key: str) -> dict[str, str]:
    """{file name: caption} of a folder; {} where it has no metadata.jsonl.

    Args:
        root:  the folder
        names: of its pictures, relative to it
        key:   of the configuration, for errors

    Raises:
        ValueError: naming the line, if it is none of a picture's that is there, or the second one of the same.
    """
    file = Path(root) / METADATA
    if not file.is_file():
        return {}
    there, captions = set(names), {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}): convert it") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, caption = _fields(line, f"{file}:{number}")
        if name not in there:
            raise ValueError(f"{file}:{number} names {name}, which is no picture in {key}={root}: remove the line")
        if name in captions:
            raise ValueError(f"{file}:{number} names {name} for the second time: remove one of its lines")
        captions[name] = caption
    return captions


def _fields(line: str, place: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        name, caption = entry["file_name"], entry.get("text", "")  # other columns are other people's
        assert isinstance(name, str)
        assert isinstance(caption, str)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        wanted = '{"file_name": "a.png", "text": "what it shows"}'
        raise ValueError(f"{place} is no line like {wanted}: mend it") from None
    return name, check_caption(caption, place)


def check_caption(caption: str, place: str) -> str:
    """A caption in one line; ValueError, naming the place, if it is too long to be one."""
    caption = " ".join(caption.split())
    if (size := len(caption.encode(errors="replace"))) > MOST:
        raise ValueError(f"{place} has a caption of {size:,} bytes, and at most {MOST:,} are one: shorten it")
    return caption.encode(errors="replace").decode()
