"""Where the runs lie that a run names: its config has paths from the folder in which its command was started."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = "report.html"


def places(run: Path, config: dict[str, Any], named: str) -> tuple[Path, ...]:
    """Where a path of a run's config may lie, the likeliest first.

    The command was started in the folder above the run's name and `runs`; a run that was moved, or `ldm probe` made,
    has what it names beside it.
    """
    depth = len(Path(str(config.get("run", run.name))).parts) + 1
    above = run.resolve().parents
    started_in = above[min(depth, len(above)) - 1]
    return tuple(dict.fromkeys([started_in / named, above[0] / Path(named).name, Path(named)]))


def run_of(place: Path) -> Path:
    """The run folder of a path that may name a file in it, or a checkpoint in its checkpoints/."""
    place = Path(os.path.normpath(place))  # by name: beside a folder that is gone, its neighbours may be there
    if place.is_dir() or not place.suffix:
        return place
    return place.parent.parent if place.parent.name == "checkpoints" else place.parent


def beside(run: Path) -> Iterator[Path]:
    """The other folders of the folder that a run lies in, by name."""
    try:
        with os.scandir(run.resolve().parent) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return
    yield from (run.resolve().parent / name for name in names if name != run.resolve().name)


def bytes_of(run: Path) -> int:
    """Of all files in a folder but the page itself; links are not followed."""
    files = (path for path in run.rglob("*") if path.is_file() and not path.is_symlink() and path.name != PAGE)
    return sum(path.stat().st_size for path in files)
