"""Finding the images of a folder, and choosing those that are held out."""

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ldm.runtime.files import existing_folder

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
UNLABELLED = ["all"]  # the one class of a source without labels
SPLITS = {"train", "val", "validation", "test"}


class Listing(NamedTuple):
    """What lies in a folder of images."""

    class_names: list[str]
    images: list[tuple[Path, int]]  # sorted, each with its label
    others: Counter[str]  # files of other kinds, by the ends of their names, such as ".heic" (or "without extension")


def by_hash(keys: Sequence[str]) -> list[int]:
    """Indices of the keys in an order that mixes classes, and that new keys join without reordering the others."""
    return sorted(range(len(keys)), key=lambda i: (zlib.crc32(keys[i].encode()), keys[i]))


def held_out(keys: Sequence[str], fraction: float) -> list[int]:
    """Indices of round(n fraction) of the keys, at least one: the first by hash, so that growth moves few."""
    return by_hash(keys)[: max(1, round(len(keys) * fraction))]


def list_images(root: str, key: str) -> Listing:
    """List a folder's images by their names' extensions, through links, without hidden files and folders.

    Args:
        root: the folder: one subfolder a class, or flat and unlabelled.
        key:  of the configuration, for errors.

    Raises:
        ValueError: if there are no images, if classes and loose images are mixed, or if the subfolders are splits.
    """
    folder = existing_folder(root, key)
    walk = (Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    files = [path for path in walk if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    paths = sorted(path for path in files if path.suffix[1:].lower() in EXTENSIONS)
    others = Counter(path.suffix.lower() or "without extension" for path in files) - Counter(
        p.suffix.lower() for p in paths
    )
    if not paths:
        instead = f", but {in_words(others)}: convert them" if others else ""
        raise ValueError(f"{key}={root} holds no images ({', '.join(EXTENSIONS)}){instead}")
    loose = [path for path in paths if path.parent == folder]
    if loose and len(loose) < len(paths):
        raise ValueError(
            f"{key}={root} mixes class subfolders with loose images such as {loose[0].name}: move one kind"
        )
    if loose:
        return Listing(UNLABELLED, [(path, 0) for path in paths], others)
    classes = [path.relative_to(folder).parts[0] for path in paths]
    names = sorted(set(classes))
    if set(names) <= SPLITS:
        other = f" data.val_root={root}/{names[-1]}" if key == "data.root" else ""
        first = "train" if "train" in names else names[0]
        raise ValueError(
            f"{key}={root} holds splits ({', '.join(names)}), not classes: pass {key}={root}/{first}{other}"
        )
    index = {name: i for i, name in enumerate(names)}
    return Listing(names, [(path, index[name]) for path, name in zip(paths, classes, strict=True)], others)


def in_words(kinds: Counter[str], most: int = 5) -> str:
    """ "10 .heic, 2 .tif": how many there are of each kind, those with the most files first."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    counts = [f"{count:,} {kind}" for kind, count in ordered[:most]]
    return ", ".join(counts) + (f" and {len(ordered) - most} other kinds" if len(ordered) > most else "")
