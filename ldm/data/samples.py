"""Encoded images with their labels and captions, and what tells whether they are the same as before."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "val"]


class Sample(NamedTuple):
    """One encoded image."""

    key: str  # a file's path, or a shard's URL and the key in it, for error messages
    data: bytes
    extension: str
    label: int
    problem: str = ""  # why it could not be read, if so
    caption: str = ""


class Part(NamedTuple):
    """Samples that are read in order: a slice of a source, or one of its shards."""

    name: str
    images: str  # a digest of the samples' names, by which a cache notices that some came or went
    files: Callable[[], str]  # a digest of their files' sizes and times, by which it notices that one was replaced
    samples: Callable[[], Iterator[Sample]]

    def content(self) -> str:
        """A digest of the samples' bytes and labels, all of which are read for it."""
        contents = Contents()
        for _ in contents.of(self.samples()):
            pass
        return contents.digest()


def digest(*names: object) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the names."""
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]


def digest_of_files(paths: Iterable[str | Path]) -> str:
    """A digest of files' sizes and times; of one that is not there, that it is not."""

    def state(path: str | Path) -> tuple[int, int] | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    return digest(*map(state, paths))


class Contents:
    """A digest of the bytes, labels and captions of samples, taken while somebody reads them."""

    def __init__(self) -> None:
        self.total, self.any = hashlib.sha256(), False

    def of(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples, noted as they pass."""
        for sample in samples:
            self.any = True
            self.total.update(hashlib.sha256(sample.data).digest() + f"{sample.label}{sample.caption}".encode())
            yield sample

    def digest(self) -> str:
        """Sixteen hexadecimal digits, of those that have passed; "" if none has."""
        return self.total.hexdigest()[:16] if self.any else ""
