"""Captioned emoji, as an experiment of text wants them: combinations of a subject and a skin tone held out, and scores.

    python jobs/emoji.py split EMOJI data/emoji      a folder of pictures and metadata.jsonl -> data/emoji/{train,val}

Of every third subject that is there in all five tones, one tone is held out: its pictures are never seen in training,
the subject and the tone are, in other combinations. Beside these, one picture of each folder, for Folder wants the same
classes in both splits.
"""

import json
import re
import shutil
import sys
import zlib
from collections import defaultdict
from pathlib import Path

TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]
TONED = re.compile(r"(.+), (light|medium-light|medium|medium-dark|dark) skin tone")


def split(source: Path, target: Path) -> None:
    """Copy the pictures and their captions into target/train and target/val."""
    lines = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    held = held_out(lines)
    for name in ("train", "val"):
        chosen = [line for line in lines if (line["file_name"] in held) == (name == "val")]
        for line in chosen:
            (target / name / line["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / line["file_name"], target / name / line["file_name"])
        text = "".join(json.dumps(line) + "\n" for line in chosen)
        (target / name / "metadata.jsonl").write_text(text)
        print(f"{target / name}: {len(chosen)} pictures, {len({t for t in map(tone_of, chosen) if t})} tones")


def tone_of(line: dict[str, str]) -> str | None:
    """The one skin tone that a caption ends in."""
    toned = TONED.fullmatch(line["text"])
    return toned and toned[2]


def held_out(lines: list[dict[str, str]]) -> set[str]:
    """The names of the files that are held out: see the head."""
    subjects: dict[str, dict[str, str]] = defaultdict(dict)
    folders: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        toned = TONED.fullmatch(line["text"])
        if toned:
            subjects[toned[1]][toned[2]] = line["file_name"]
        else:
            folders[line["file_name"].partition("/")[0]].append(line["file_name"])
    held = {min(names, key=_number) for names in folders.values()}
    for subject, files in subjects.items():
        if len(files) == len(TONES) and _number(subject) % 3 == 0:
            held.add(files[TONES[_number(subject) // 3 % len(TONES)]])
    return held


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "split":
        sys.exit(f"{__doc__}")
    split(Path(sys.argv[2]), Path(sys.argv[3]))
