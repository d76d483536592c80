"""Finding the images of a folder, and choosing those that are held out."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from ldm.runtime.files import existing_folder

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
UNLABELLED = ["all"]  # the one class of a source without labels


def by_hash(keys: Sequence[str]) -> list[int]:
    """Indices of the keys in an order that mixes classes, and that new keys join without reordering the others."""
    return sorted(range(len(keys)), key=lambda i: (zlib.crc32(keys[i].encode()), keys[i]))


def held_out(keys: Sequence[str], fraction: float) -> list[int]:
    """Indices of round(n fraction) of the keys, at least one: the first by hash, so that growth moves few."""
    return by_hash(keys)[: max(1, round(len(keys) * fraction))]


def list_images(root: str, key: str) -> tuple[list[str], list[tuple[Path, int]]]:
    """Class names and (path, label) of a folder's images, sorted; ValueError, naming the key, if there are none."""
    folder = existing_folder(root, key)
    files = (Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)
    hidden = lambda p: any(part.startswith(".") for part in p.relative_to(folder).parts)  # noqa: E731
    paths = sorted(p for p in files if p.suffix[1:].lower() in EXTENSIONS and not hidden(p))
    if not paths:
        raise ValueError(f"{key}={root} holds no images ({', '.join(EXTENSIONS)})")
    classes = [p.relative_to(folder).parts[0] if p.parent != folder else None for p in paths]
    flat = [p for p, name in zip(paths, classes, strict=True) if name is None]
    if flat and len(flat) < len(paths):
        raise ValueError(f"{key}={root} mixes class subfolders with loose images such as {flat[0].name}: move one kind")
    if flat:
        return UNLABELLED, [(p, 0) for p in paths]
    names = sorted({name for name in classes if name is not None})
    if set(names) <= {"train", "val", "validation", "test"}:
        other = f" data.val_root={root}/{names[-1]}" if key == "data.root" else ""
        first = "train" if "train" in names else names[0]
        raise ValueError(
            f"{key}={root} holds splits ({', '.join(names)}), not classes: pass {key}={root}/{first}{other}"
        )
    index = {name: i for i, name in enumerate(names)}
    return names, [(p, index[name]) for p, name in zip(paths, classes, strict=True) if name is not None]
