"""The sets of images that `ldm evaluate` compares: an .npz, a folder or shards, of `ldm sample` or other programs."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ldm.data.image_data import in_order
from ldm.data.listing import OTHER_IMAGES, UNLABELLED, in_words, list_images
from ldm.data.samples import Part, Sample, Split, digest
from ldm.data.shards import Shards
from ldm.data.sources import Folder, Source
from ldm.data.tars import INDEX, Shard
from ldm.evaluation.result_files import SAMPLES, STAMP, SampleStamp
from ldm.metrics.array_files import ArrayFile
from ldm.metrics.statistics import Subset, pixel_hashes
from ldm.runtime.files import CONFIG, sha256

Batches = Iterator[tuple[Tensor, Tensor]]  # images, uint8 [B, 3, H, W], and labels, long [B]
Pixels = npt.NDArray[np.uint8]  # [N, H, W, 3]
Labels = npt.NDArray[Any]  # [N], of any integer type


class ImageSet(Protocol):
    """Images with labels, which are 0 where there are none."""

    @property
    def card(self) -> dict[str, Any]:
        """What determines the pixels."""
        ...

    @property
    def stamp(self) -> dict[str, Any]:
        """What `ldm sample` wrote about the images; {} of all others."""
        ...

    @property
    def place(self) -> str:
        """Where the set lies, and its files' sizes and times: folders of equal names have equal cards."""
        ...

    def batches(self, batch_size: int, num_workers: int, rank: int, world: int) -> Batches:
        """This rank's share; over all ranks, each image once."""
        ...


@dataclass(frozen=True)
class ArraySet:
    """An .npz as `ldm sample`, ADM and others write it.

    Args:
        path  : the file
        images: its arr_0
        labels: its arr_1; None = it has none
        stamp : what `ldm sample` wrote beside it
        card  : its name, checksum and the images' size
    """

    path: Path
    images: Pixels
    labels: Labels | None
    stamp: dict[str, Any]
    card: dict[str, Any]

    @classmethod
    def load(cls, file: Path) -> "ArraySet":
        """Raises ValueError, naming the file, if it is damaged or holds something else."""
        arrays = ArrayFile(file)
        checksum = sha256(file)[:16]
        stamp = stamp_beside(file)
        if stamp.get("sha256", checksum) != checksum:
            raise ValueError(f"{file} is not the one that {STAMP} beside it describes: sample again, or remove {STAMP}")
        if "sha256" not in stamp:
            arrays.check()
        images = arrays.mapped("arr_0")
        labels = arrays.mapped("arr_1") if "arr_1" in arrays else None
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
            raise ValueError(f"{file}: arr_0 must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
        if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
            raise ValueError(
                f"{file}: arr_1 must hold {len(images)} whole numbers, not {labels.dtype} {list(labels.shape)}"
            )
        if labels is not None and not -(1 << 62) < int(labels.min()) <= int(labels.max()) < 1 << 62:
            raise ValueError(f"{file}: arr_1 holds {labels.max()}, which is no label")
        return cls(file, images, labels, stamp, {"set": file.name, "sha256": checksum, "size": images.shape[1]})

    @property
    def place(self) -> str:
        return ""  # the checksum in its card tells it from others

    def batches(self, batch_size: int, num_workers: int, rank: int, world: int) -> Batches:  # noqa: ARG002
        labels = np.zeros(len(self.images), dtype=np.int64) if self.labels is None else self.labels
        images, labels = self.images[rank::world], labels[rank::world]
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2).contiguous()
            yield part, torch.from_numpy(labels[start : start + batch_size].astype(np.int64))


def stamp_beside(file: Path) -> dict[str, Any]:
    """What `ldm sample` says of its samples.npz; {} of others."""
    stamp = file.parent / STAMP
    if file.name != SAMPLES or not stamp.exists():
        return {}
    return SampleStamp.read(stamp).model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class SourceSet:
    """Splits of a source of images.

    Args:
        source  : of the images, which it prepares
        splits  : train, val or both
        finished: what to call the images in an error, where they are samples: they are not prepared, and must have the
                  source's resolution; None = the source prepares them
        stamp   : see `ImageSet`
    """

    source: Source
    splits: tuple[Split, ...]
    finished: str | None = None
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return digest(*(_state(place) for split in self.splits for place in self.source.places(split)))

    @cached_property
    def card(self) -> dict[str, Any]:
        contents = [part.images for split in self.splits for part in self.source.parts(split, 4096)]
        kind = type(self.source).__name__.lower()
        named = {"set": kind, "splits": "+".join(self.splits), "content": digest(*contents)}
        return named | self.source.preprocessing()

    def batches(self, batch_size: int, num_workers: int, rank: int, world: int) -> Batches:
        view = partial(_as_it_is, source=self.source, name=self.finished) if self.finished else None
        for split in self.splits:
            yield from in_order(self.source, split, batch_size, num_workers, rank, world, view)


@dataclass(frozen=True, kw_only=True)
class TarFolder(Shards):
    """Tars of other programs in a folder, which name no classes; each split is all of them."""

    def __post_init__(self) -> None:
        Source.__post_init__(self)

    @cached_property
    def class_names(self) -> list[str]:
        return UNLABELLED

    @cached_property
    def _splits(self) -> dict[Split, list[Shard]]:
        shards = [Shard(path=path) for path in sorted(Path(str(self.root)).glob("*.tar"))]
        return {"train": shards, "val": shards}


def _state(place: str) -> tuple[str, int, int] | str:
    """What tells a file from others, and from what it was before. A URL or a pipe tells itself alone."""
    if not os.path.isfile(place):  # Path.is_file raises an error where a pipe's command is longer than a file's name
        return place
    path = Path(place).resolve()
    return str(path), path.stat().st_size, path.stat().st_mtime_ns


def _as_it_is(image: Image.Image, source: Source, name: str) -> Tensor:
    """A sample as pixels, uint8 [3, R, R]: samples are neither enlarged nor cropped to be scored."""
    check_size(name, image.width, image.height, source.resolution)
    return source.center_view(image)


def check_size(name: str, width: int, height: int, resolution: int) -> None:
    """Raises ValueError, with the fix, for images of another size than data's."""
    if (width, height) != (resolution, resolution):
        fix = f"pass data.resolution={width}" if width == height else "they must be square"
        raise ValueError(f"{name} has images of {width} x {height} pixels, data.resolution={resolution}: {fix}")


def open_set(path: Path, like: Source, key: Literal["samples", "reference"]) -> ImageSet:
    """The images at a path: a run of `ldm sample`, an .npz, a folder of `ldm pack`, a folder of tars or of images.

    Args:
        path: all images in it belong to the set: none are held out
        like: the source whose resolution they have; it also says how a reference is resized and cropped
        key : of the configuration, for errors

    Raises:
        ValueError: naming the key, if there is nothing of the kind.
    """
    if not path.exists():
        raise ValueError(f"{key}={path} holds no {SAMPLES}: run `ldm sample` first, or name what exists")
    file = path / SAMPLES if (path / SAMPLES).exists() else path
    if file.suffix == ".npz":
        array = ArraySet.load(file)
        _, height, width, _ = array.images.shape
        check_size(f"{key}={path}", width, height, like.resolution)
        return array
    finished = f"{key}={path}" if key == "samples" else None
    resize = None if finished else like.resize
    prepared: dict[str, Any] = {"resolution": like.resolution, "resize": resize, "on_error": like.on_error}
    if (path / INDEX).exists():
        return SourceSet(Shards(root=str(path), **prepared), ("train", "val"), finished)
    if (path / CONFIG).exists():
        raise ValueError(f"{key}={path} holds no {SAMPLES}: run `ldm sample` first, or name another run")
    if any(path.glob("*.tar")):
        return SourceSet(TarFolder(root=str(path), **prepared), ("train",), finished)
    listing = list_images(str(path), key)
    if unread := {kind: count for kind, count in listing.others.items() if kind in OTHER_IMAGES}:
        raise ValueError(
            f"{key}={path} holds {len(listing.images)} images that can be read, and besides "
            f"{in_words(Counter(unread))}: convert them, or take them away"
        )
    return SourceSet(Folder(root=str(path), val_root=str(path), **prepared), ("train",), finished)


def holds_images(file: Path) -> bool:
    """Whether an .npz of statistics has images beside them, as ADM's files have for precision and recall."""
    return "arr_0" in ArrayFile(file)


def drawn_by_pixels(images: ImageSet, num: int, batch_size: int) -> Tensor:
    """`num` images of a set, uint8 [num, 3, H, W], of all its classes whatever its order; the same on all ranks."""
    chosen = Subset(num)
    for image, _ in images.batches(batch_size, 0, 0, 1):
        chosen.add(pixel_hashes(image), image)
    return chosen.take()


def spread(source: Source, split: Split, num: int, batch_size: int) -> Batches:
    """Batches of `num` images from all over a split, whose order may be that of its classes; the same on all ranks."""
    parts = source.parts(split, 128)
    samples = _in_turn(parts, min(num, len(parts), 64))
    decoded = ((source.decode(sample), sample.label) for sample in samples)
    views = ((source.center_view(image), label) for image, label in decoded if image is not None)
    chosen = islice(views, num)
    while batch := list(islice(chosen, batch_size)):
        images, labels = zip(*batch, strict=True)
        yield torch.stack(images), torch.tensor(labels)


def _in_turn(parts: list[Part], count: int) -> Iterator[Sample]:
    """One sample each from `count` evenly spaced parts, in turn; one from between replaces a part that has no more."""
    spaced = [i * len(parts) // count for i in range(count)]
    between = deque(part for i, part in enumerate(parts) if i not in spaced)
    streams = deque(parts[i].samples() for i in spaced)
    while streams:
        stream = streams.popleft()
        sample = next(stream, None)
        if sample is not None:
            yield sample
            streams.append(stream)
        elif between:
            streams.append(between.popleft().samples())
