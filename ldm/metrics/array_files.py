"""Arrays of an .npz, each held to the bytes that are there before anything is allocated for it."""

import io
import math
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ldm.runtime.memory import check_fits
from ldm.runtime.wrong import first_line

Array = npt.NDArray[Any]
VERSIONS = ((1, 0), (2, 0), (3, 0))  # of npy's header


class ArrayFile:
    """An .npz of plain arrays.

    Args:
        path: the file

    Raises:
        ValueError: naming the file, if it is no zip, or if what is compressed in it takes more memory than there is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}")
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
                for entry in archive.infolist():
                    archive.open(entry).close()  # its name must be the same in the list and where it lies
                    if entry.comment:  # a damaged length, and the entries after it are taken for a comment
                        raise zipfile.BadZipFile(f"{entry.filename} has a comment")
        except Exception as error:  # zipfile raises whatever a damaged file leads it to
            raise self._damaged(error) from None
        compressed = [entry.file_size for entry in self.entries.values() if entry.compress_type != zipfile.ZIP_STORED]
        check_fits(sum(compressed), f"{path}, decompressed,", "write it with numpy.savez, uncompressed")

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.entries

    def check(self) -> None:
        """ValueError if an entry's checksum is wrong: `read` compares its own, `mapped` none."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                entry = archive.testzip()
        except Exception as error:
            raise self._damaged(error) from None
        if entry is not None:
            raise self._damaged(f"the checksum of {entry} is wrong")

    def read(self, name: str) -> Array:
        """An array in memory, in this machine's order of bytes."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(self._entry(name))
            file = io.BytesIO(content)
            shape, fortran, dtype = _header(file, len(content))
            array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
            return np.array(array, dtype.newbyteorder("="))
        except Exception as error:
            raise self._damaged(error, name) from None

    def mapped(self, name: str) -> Array:
        """An array that stays on disk, if it is not compressed; a machine's ranks share its pages."""
        entry = self._entry(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            return self.read(name)
        try:
            with self.path.open("rb") as file:
                file.seek(entry.header_offset + 26)  # the lengths of the entry's name and of its extra field
                file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
                shape, fortran, dtype = _header(file, file.tell() + entry.file_size)
                if 0 in shape:
                    return np.empty(shape, dtype)
                return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
        except Exception as error:
            raise self._damaged(error, name) from None

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self:
            raise ValueError(f"{self.path} holds no {name}")
        return self.entries[f"{name}.npy"]

    def _damaged(self, why: Exception | str, name: str | None = None) -> ValueError:
        return ValueError(f"{self.path} is damaged{f' in {name}' if name else ''}: {first_line(why)}")


def _header(file: IO[bytes], end: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and type of an array that reaches from here to the file's place `end`."""
    version = np.lib.format.read_magic(file)
    if version not in VERSIONS:
        raise ValueError(f"its header has the version {version[0]}.{version[1]}, not 1.0, 2.0 or 3.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        shape, fortran, dtype = read(file)
    if dtype.hasobject:  # of pointers, the file's bytes would be followed
        raise ValueError("it holds Python objects")
    if dtype.itemsize == 0 or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"its header says {dtype} {list(shape)}")
    wanted, there = dtype.itemsize * math.prod(shape), end - file.tell()
    if wanted != there:
        raise ValueError(f"its header says {dtype} {list(shape)}, {wanted} bytes, and it has {there}")
    return shape, fortran, dtype
