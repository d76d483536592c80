"""Finding the images of a folder, and choosing those that are held out."""

import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ldm.data.captions import METADATA
from ldm.runtime.files import existing_folder

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
OTHER_IMAGES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tga", ".tif", ".tiff")
UNLABELLED = ["all"]  # the one class of a source without labels
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
NO_FILE = "no regular file"  # pipes, devices and the like under an image's name


class Listing(NamedTuple):
    """What lies in a folder of images."""

    class_names: list[str]
    images: list[tuple[Path, int]]  # sorted by class and name, each with its label
    others: Counter[str]  # files that are no images here, by the ends of their names (or "without extension")
    loops: list[Path]  # links to folders that they lie in


def by_hash(keys: Sequence[str]) -> list[int]:
    """Indices of the keys in an order that mixes classes, and that new keys join without reordering the others."""
    return sorted(range(len(keys)), key=lambda i: (zlib.crc32(os.fsencode(keys[i])), keys[i]))


def held_out(keys: Sequence[str], fraction: float) -> list[int]:
    """Indices of round(n fraction) of the keys, at least one: the first by hash, so that growth moves few."""
    return by_hash(keys)[: max(1, round(len(keys) * fraction))]


def list_images(root: str, key: str) -> Listing:
    """List a folder's images by their names' extensions, through links, without hidden files and folders.

    Classes are in the order of their names; of numbers, in that of the numbers.

    Args:
        root: the folder: one subfolder a class, or flat and unlabelled.
        key:  of the configuration, for errors.

    Raises:
        ValueError: if there are no images, if classes and loose images are mixed, or if the subfolders are splits.
    """
    folder = existing_folder(root, key)
    loops: list[Path] = []
    others: Counter[str] = Counter()
    paths: list[Path] = []
    for path in _files(folder, loops):
        if path == folder / METADATA:
            continue
        if path.suffix[1:].lower() not in EXTENSIONS:
            others[path.suffix.lower() or "without extension"] += 1
        elif _never_ends(path):
            others[NO_FILE] += 1
        else:
            paths.append(path)
    if not paths:
        instead = f", but {in_words(others)}: convert them" if others else ""
        raise ValueError(f"{key}={root} holds no images ({', '.join(EXTENSIONS)}){instead}")
    loose = [path for path in paths if path.parent == folder]
    if loose and len(loose) < len(paths):
        raise ValueError(
            f"{key}={root} mixes class subfolders with loose images such as {loose[0].name}: move one kind"
        )
    if loose:
        return Listing(UNLABELLED, [(path, 0) for path in sorted(paths)], others, loops)
    classes = {path: path.relative_to(folder).parts[0] for path in paths}
    names = in_order(set(classes.values()))
    if {name.lower() for name in names} <= SPLITS:
        first = next((name for name in names if name.lower().startswith("train")), names[0])
        held = next((name for name in reversed(names) if name != first), None)
        other = f" data.val_root={root}/{held}" if key == "data.root" and held else ""
        raise ValueError(
            f"{key}={root} holds splits ({', '.join(names)}), not classes: pass {key}={root}/{first}{other}"
        )
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{key}={root} has a class whose name is no readable text, {name!r}: rename that folder")
    index = {name: i for i, name in enumerate(names)}
    return Listing(names, [(path, index[classes[path]]) for path in sorted(paths)], others, loops)


def in_order(names: set[str]) -> list[str]:
    """The names sorted; if all are numbers, by their values, so that classes=[2] means 2 and not 10."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _files(folder: Path, loops: list[Path]) -> Iterator[Path]:
    """The files below a folder that are not hidden; links to a folder around them are noted and not followed."""
    around: dict[str, tuple[tuple[int, int], ...]] = {}  # of each folder, those that it lies in and itself
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        if parent not in around:
            around[parent] = (_inode(parent),)
        inner = []
        for name in sorted(subfolders):
            path = os.path.join(parent, name)
            if name.startswith("."):
                continue
            if (inode := _inode(path)) in around[parent]:
                loops.append(Path(path))
                continue
            around[path] = (*around[parent], inode)
            inner.append(name)
        subfolders[:] = inner
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    """A class that can't be listed would be left out without a word."""
    raise ValueError(f"{error.filename} can't be listed ({error.strerror}): change its permissions, or take it away")


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _never_ends(path: Path) -> bool:
    """Whether a name leads to something else than a file: a pipe, a device. A link to nothing is read, and fails."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def described(listing: Listing) -> str:
    """ "20 images in 2 classes of 8 to 12" """
    counts = Counter(label for _, label in listing.images)
    if len(listing.class_names) == 1:
        return f"{len(listing.images):,} images of one class"
    few, many = min(counts.values()), max(counts.values())
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    return f"{len(listing.images):,} images in {len(counts):,} classes of {each}"


def left_out(listing: Listing) -> str:
    """What of a folder is not among its images, and why."""
    said = []
    if count := listing.others.total():
        files = "a file that is" if count == 1 else f"{count:,} files that are"
        said.append(f"{files} not jpg, png or webp: {in_words(listing.others)}")
    if listing.loops:
        said.append(f"links to folders that they lie in: {', '.join(map(str, listing.loops[:3]))}")
    return "; ".join(said)


def in_words(kinds: Counter[str], most: int = 5) -> str:
    """ "10 .heic, 2 .tif": how many there are of each kind, those with the most files first."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    counts = [f"{count:,} {kind}" for kind, count in ordered[:most]]
    return ", ".join(counts) + (f" and {len(ordered) - most} other kinds" if len(ordered) > most else "")
