"""Sources of images: where encoded images come from, and how each becomes resolution x resolution pixels.

A source's fields are the keys of its file in conf/data. To add a source, subclass `IndexedSource`, write its methods
`class_names`, `count`, `key` and `read`, and add such a file.
"""

import io
import logging
import multiprocessing
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.captions import METADATA, read_captions
from ldm.data.decoding import center_view, cut_square, open_image, read_regular, resize_short_side, rgb
from ldm.data.listing import Listing, by_hash, described, held_out, left_out, list_images
from ldm.data.order import Key, Order, OrderedBatches
from ldm.data.samples import Part, Sample, Split, digest, digest_of_files
from ldm.data.workers import loader
from ldm.runtime.ranges import Count, InsideUnit

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """LDM's preprocessing: the short side is resized, a square is cropped and, in training, perhaps mirrored.

    What is transparent is laid on white. Of 16 bits the upper 8 are kept.

    Args:
        resolution: side of the square, in pixels.
        resize:     length of the short side before the crop, in pixels; None = resolution.
        crop:       where the training crop lies; validation, caching and evaluation crop the centre.
        flip:       whether a mirror image is as good as the image: training and the latent cache use both.
        on_error:   what to do with an image that can't be decoded: stop with its name, or skip and count it.
        skipped:    count of the images that were skipped, in memory that this process shares with its workers.
    """

    resolution: Count
    resize: Count | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    on_error: Literal["error", "skip"] = "error"
    skipped: Any = field(init=False, repr=False, compare=False, default_factory=lambda: multiprocessing.Value("q"))

    def __post_init__(self) -> None:
        for name, allowed in (("crop", ("center", "random")), ("on_error", ("error", "skip"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"data.{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")
        if self.resize is not None and self.resize < self.resolution:
            raise ValueError(f"data.resize={self.resize} is smaller than data.resolution={self.resolution}")

    @property
    @abstractmethod
    def class_names(self) -> list[str]: ...

    @abstractmethod
    def parts(self, split: Split, size: int) -> list[Part]:
        """The split in a fixed order, in parts of at most `size` images (or of one shard)."""

    @abstractmethod
    def training_loader(self, order: Order, num_workers: int) -> "DataLoader[Any]":
        """Endless batches (image [B, 3, R, R] uint8, label [B]) of the train split, shuffled and augmented."""

    def places(self, split: Split) -> list[str]:  # noqa: ARG002
        """The files or URLs that hold the split; [] for a source that has none."""
        return []

    def preprocessing(self) -> dict[str, Any]:
        """What determines the pixels of the centre view: for manifests, and for the stamps of evaluations."""
        return {"resolution": self.resolution, "resize": self.resize or self.resolution, "filter": "bicubic"}

    def report_skipped(self) -> None:
        """Print how often on_error=skip has left out an image, over all workers of this process, if it has."""
        if self.skipped.value:
            print(f"left out an image that can't be decoded {self.skipped.value} times (data.on_error=skip)")

    def skip(self, problem: str) -> None:
        """Count what on_error=skip leaves out, and say it."""
        with self.skipped.get_lock():
            self.skipped.value += 1
        log.warning("skipped: %s", problem)

    def decode(self, sample: Sample) -> Image.Image | None:
        """The image in RGB, turned upright by its EXIF, without transparency; None if it is damaged and skipped.

        Raises:
            ValueError: that names it, if it can't be decoded, or is too large to be.
        """
        try:
            if sample.problem:
                raise ValueError(sample.problem)
            return rgb(open_image(sample.data, self.resize or self.resolution), sample.key)
        except Exception as error:  # Pillow's decoders raise what they meet: EOFError, SyntaxError, struct.error, ...
            told = " ".join(str(error).split()) or type(error).__name__
            if self.on_error == "error":
                raise ValueError(f"cannot decode {sample.key}: {told}. Remove it, or pass data.on_error=skip") from None
            self.skip(f"{sample.key} can't be decoded: {told}")
            return None

    def center_view(self, image: Image.Image) -> Tensor:
        """[3, R, R] uint8: resized, cropped in the centre."""
        return center_view(image, self.resolution, self.resize)

    def training_view(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """[3, R, R] uint8: resized, cropped and mirrored as `crop` and `flip` say, at random by `rng`."""
        resized = resize_short_side(image, self.resolution, self.resize)
        margin = (resized.width - self.resolution, resized.height - self.resolution)
        left, top = rng.integers(0, np.add(margin, 1)) if self.crop == "random" else np.floor_divide(margin, 2)
        view = cut_square(resized, int(left), int(top), self.resolution)
        return view.flip(-1) if self.flip and rng.random() < 0.5 else view


class IndexedSource(Source):
    """A source whose images can be read in any order."""

    @abstractmethod
    def count(self, split: Split) -> int: ...

    @abstractmethod
    def key(self, split: Split, index: int) -> str:
        """A name by which an image is known even when the source has moved or grown."""

    @abstractmethod
    def read(self, split: Split, index: int) -> Sample: ...

    def state(self, split: Split, indices: range) -> str:  # noqa: ARG002
        """A digest of what changes when images are replaced under their names; "" if that cannot happen."""
        return ""

    def parts(self, split: Split, size: int) -> list[Part]:
        count = self.count(split)

        def part(number: int, indices: range) -> Part:
            return Part(
                name=f"{split}-{number:06d}",
                images=digest(*(self.key(split, i) for i in indices)),
                files=lambda: self.state(split, indices),
                samples=lambda: (self.read(split, i) for i in indices),
            )

        return [part(n, range(start, min(start + size, count))) for n, start in enumerate(range(0, count, size))]

    def training_loader(self, order: Order, num_workers: int) -> "DataLoader[Any]":
        batches = OrderedBatches(order, self.count("train"))
        return loader(_TrainingViews(self, order.seed), num_workers, batch_sampler=batches)


class _TrainingViews(Dataset[tuple[Tensor, int]]):
    """Augmented views; a view's randomness is a function of (seed, epoch, index), not of the worker that makes it."""

    def __init__(self, source: IndexedSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        count = self.source.count("train")
        for i in range(count):
            sample = self.source.read("train", (index + i) % count)  # a damaged image's place is taken by the next one
            image = self.source.decode(sample)
            if image is not None:
                return self.source.training_view(image, rng), sample.label
        raise ValueError(f"none of the {count} training images can be decoded")


@cache  # drawing and dividing them takes a second, for each of a command's sources
def digit_samples() -> dict[Split, list[Sample]]:
    """The digits as PNG files in memory, divided with each class's share in either split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    samples = []
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(buffer, format="PNG")
        samples.append(Sample(f"digits/{i:04d}", buffer.getvalue(), "png", int(label)))
    train, val = train_test_split(samples, test_size=297, random_state=0, stratify=digits.target)
    return {"train": train, "val": val}


@dataclass(frozen=True, kw_only=True)
class Digits(IndexedSource):
    """scikit-learn's 1,797 handwritten digits (UCI), 8 x 8 pixels: 1,500 for training, 297 held out, stratified."""

    @property
    def class_names(self) -> list[str]:
        return [str(i) for i in range(10)]

    def count(self, split: Split) -> int:
        return len(digit_samples()[split])

    def key(self, split: Split, index: int) -> str:
        return digit_samples()[split][index].key

    def read(self, split: Split, index: int) -> Sample:
        return digit_samples()[split][index]


@dataclass(frozen=True, kw_only=True)
class Folder(IndexedSource):
    """A folder of jpg, png or webp images: one subfolder a class, or flat and unlabelled; with a metadata.jsonl,
    captioned.

    Args:
        root:         the training images.
        val_root:     the validation images, with the same classes; None = val_fraction of root is held out.
        val_fraction: share of root that is held out, between 0 and 1; a hash of the file names chooses which.
    """

    root: str
    val_root: str | None = None
    val_fraction: InsideUnit = 0.05

    @property
    def class_names(self) -> list[str]:
        return self._index[0]

    @cached_property
    def _index(self) -> tuple[list[str], dict[Split, list[tuple[Path, int]]]]:
        listing = _listed(self.root, "data.root")
        names, images = listing.class_names, listing.images
        if self.val_root is not None:
            val = listing if self.val_root == self.root else _listed(self.val_root, "data.val_root")
            if val.class_names != names:
                raise ValueError(f"data.val_root has the classes {val.class_names}, data.root {names}")
            keys = [path.relative_to(self.val_root).as_posix() for path, _ in val.images]
            return names, {"train": images, "val": [val.images[i] for i in by_hash(keys)]}
        if len(images) < 2:
            raise ValueError(f"data.root={self.root} holds one image: too few to hold one out for validation")
        val_indices = held_out([path.relative_to(self.root).as_posix() for path, _ in images], self.val_fraction)
        chosen = set(val_indices)
        return names, {
            "train": [item for i, item in enumerate(images) if i not in chosen],
            "val": [images[i] for i in val_indices],
        }

    def count(self, split: Split) -> int:
        return len(self._index[1][split])

    def key(self, split: Split, index: int) -> str:
        path, _ = self._index[1][split][index]
        return path.relative_to(self._root(split)).as_posix()

    def places(self, split: Split) -> list[str]:
        return [str(path) for path, _ in self._index[1][split]]

    def read(self, split: Split, index: int) -> Sample:
        path, label = self._index[1][split][index]
        data, problem = b"", ""
        try:
            data = read_regular(path)
        except OSError as error:
            problem = f"{error.strerror or error}"
        caption = self._captions[split].get(self.key(split, index), "")
        return Sample(str(path), data, path.suffix[1:].lower(), label, problem, caption)

    def state(self, split: Split, indices: range) -> str:
        written = [Path(self._root(split), METADATA)] if self._captions[split] else []
        return digest_of_files([*(self._index[1][split][i][0] for i in indices), *written])

    @cached_property
    def _captions(self) -> dict[Split, dict[str, str]]:
        """{file name: caption} of each split."""
        splits: tuple[Split, ...] = ("train", "val")
        names: dict[str, set[str]] = {self._root(split): set() for split in splits}
        for split in splits:
            names[self._root(split)] |= {self.key(split, i) for i in range(self.count(split))}
        return {
            "train": read_captions(self.root, names[self.root], "data.root"),
            "val": read_captions(self._root("val"), names[self._root("val")], "data.val_root"),
        }

    def _root(self, split: Split) -> str:
        return self.val_root if split == "val" and self.val_root is not None else self.root


def _listed(root: str, key: str) -> Listing:
    """A folder's images; the log says what it holds, and what is left out, so that none goes unnoticed."""
    listing = list_images(root, key)
    log.info("%s: %s", root, described(listing))
    if listing.others or listing.loops:
        log.warning("%s: left out %s", root, left_out(listing))
    return listing
