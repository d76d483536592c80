"""Tars of images as streams: one that ends early, or whose headers are damaged, is an error, not a short tar."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import webdataset as wds

from ldm.data.decoding import MOST_BYTES
from ldm.data.formats import PackedShard
from ldm.data.samples import digest_of_files
from ldm.runtime.files import sha256

INDEX = "index.json"  # of a folder that `ldm pack` made


class DamagedTarError(ValueError):
    """A tar is not whole."""


class _Member(tarfile.TarInfo):
    """Python's own takes whatever follows a member and is no header for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the block of zeros that ends a tar
        except tarfile.HeaderError as error:
            raise DamagedTarError("it ends early" if _is_end(error) else f"a header is damaged ({error})") from None


def _is_end(error: tarfile.HeaderError) -> bool:
    return isinstance(error, tarfile.EmptyHeaderError | tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


def members(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The samples of a tar, compressed or not: {"__key__": "000001", "jpg": bytes, "cls": bytes}, files that follow
    each other and have a name in common. Only regular files count, and none is written anywhere.

    Raises:
        DamagedTarError: that names the member after which it is damaged.
        OSError: if it can't be read.
    """
    last = ""

    def files() -> Iterator[dict[str, Any]]:
        nonlocal last
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
            for member in tar:
                if member.size > MOST_BYTES:
                    raise DamagedTarError(f"{member.name} has {member.size:,} bytes, more than a picture can have")
                if member.isreg() and not member.name.startswith("__"):
                    held = tar.extractfile(member)
                    assert held is not None
                    yield {"fname": member.name, "data": held.read(), "__url__": ""}
                last = member.name
                tar.members = []  # type: ignore[attr-defined]  # which would grow with the tar

    try:
        yield from wds.tariterators.group_by_keys(files())
    except (tarfile.TarError, EOFError, DamagedTarError, ValueError) as error:
        told = " ".join(str(error.args[0] if error.args else error).split())
        raise DamagedTarError(f"{told}, {f'after {last}' if last else 'at its beginning'}") from None


@dataclass(frozen=True)
class Shard:
    """One tar, and what an index says of it.

    url:    of a shard that `urls=` names: a path, a URL or a pipe's command
    path:   of any other: a file, whatever its name looks like
    listed: its line of index.json; None where nobody counted
    """

    url: str = ""
    path: Path | None = None
    listed: PackedShard | None = None

    def __str__(self) -> str:
        return self.url or str(self.path)

    @property
    def count(self) -> int | None:
        return None if self.listed is None else self.listed.count

    def open(self) -> IO[bytes]:
        if self.path is None:
            stream: IO[bytes] = wds.gopen(self.url)
            return stream
        if not self.path.is_file():
            raise OSError("it is missing" if not self.path.exists() else "it is no regular file")
        return self.path.open("rb")

    def name(self) -> str:
        """Of a file its name, for it may move; a URL, or a pipe's command, is known by itself alone."""
        return Path(str(self)).name if self.path is not None or os.path.isfile(self.url) else self.url

    def state(self) -> str:
        """A digest of a file's size and time; "" of others."""
        return digest_of_files([str(self)]) if self.path is not None or os.path.isfile(self.url) else ""

    def check(self, full: bool) -> None:
        """ValueError if its file's size, or with `full` its checksum, is not as the index says."""
        if self.listed is None or self.listed.bytes is None or self.path is None:
            return
        fix = "copy it anew, or run `ldm pack` again, into a new folder"
        if not self.path.is_file():
            raise ValueError(f"{self.path}, which {INDEX} lists, is missing: {fix}")
        if (size := self.path.stat().st_size) != self.listed.bytes:
            raise ValueError(f"{self.path} has {size} bytes, {INDEX} says {self.listed.bytes}: {fix}")
        if full and sha256(self.path) != self.listed.sha256:
            raise ValueError(f"{self.path} differs from the checksum in {INDEX}: {fix}")
