"""Shards of the latent cache as blocks of arrays, mapped into memory and held to the manifest."""

import math
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.data.formats import Manifest
from ldm.data.shard_writer import CAPTIONS, CODES, FEATURES, MOMENTS

ANEW = "remove it, and run the same `ldm cache-latents` again"


class Block(NamedTuple):
    """Images that lie together in a shard."""

    start: int  # its first image's index in the shard
    moments: np.ndarray  # [n, views, 2C, h, w] fp16, memory-mapped; or codes [n, views, 1, h, w]
    labels: np.ndarray  # [n]
    kept: dict[str, np.ndarray]  # likewise mapped


def rows_of(block: Block, name: str, rows: Any) -> np.ndarray:
    """Some rows of what a block keeps beside its latents; of captions that it lacks, empty ones.

    Raises:
        ValueError: if the block does not keep that.
    """
    if name in block.kept:
        return block.kept[name][rows]
    if name == CAPTIONS:
        return np.zeros(len(block.labels), "S1")[rows]
    raise ValueError(f"the latents keep no {name}: cache them anew")


def open_shard(path: Path, count: int, manifest: Manifest) -> list[Block]:
    """A shard's blocks, mapped into memory.

    Raises:
        ValueError: naming the shard, if they are not what the manifest says, whatever their checksum.
    """
    try:
        blocks = _open_blocks(path)
        for block in blocks:
            _check_block(block, manifest)
        if (held := sum(len(block.labels) for block in blocks)) != count:
            raise ValueError(f"it holds {held} images, the manifest says {count}")
    except (ValueError, OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise ValueError(f"{path} is no shard of this cache: {' '.join(str(error).split())}: {ANEW}") from None
    return blocks


def _check_block(block: Block, manifest: Manifest) -> None:
    moments, labels, classes = block.moments, block.labels, len(manifest.class_names)
    wanted = (len(labels), manifest.views, *manifest.shape)
    if moments.dtype != np.dtype(manifest.dtype).newbyteorder("<") or moments.shape != wanted:
        what = MOMENTS if manifest.codes is None else CODES
        raise ValueError(f"{what} are {moments.dtype} {list(moments.shape)}, not {manifest.dtype} {list(wanted)}")
    if labels.dtype != np.dtype("<i8") or labels.ndim != 1:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, not int64 [n]")
    _check_kept(block, manifest)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, and there are {classes} classes")


def _check_kept(block: Block, manifest: Manifest) -> None:
    n, encoder, side = len(block.labels), manifest.text_encoder, manifest.low_resolution
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    if encoder is not None:
        wanted = {
            "embeddings": ("<f2", (n, encoder.tokens, encoder.width)),
            "text_mask": ("|b1", (n, encoder.tokens)),
        }
    if side is not None:
        wanted["low"] = ("|u1", (n, 3, side, side))
    if (dense := manifest.features) is not None:
        wanted[FEATURES] = ("<f2", (n, dense.channels, dense.height, dense.width))
    captions = block.kept.get(CAPTIONS)
    if captions is not None and (captions.dtype.kind != "S" or captions.shape != (n,)):
        raise ValueError(f"captions are {captions.dtype} {list(captions.shape)}, not bytes [{n}]")
    for name, (dtype, shape) in wanted.items():
        array = block.kept.get(name)
        if array is None or array.dtype != np.dtype(dtype) or array.shape != shape:
            got = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name} are {got}, not {np.dtype(dtype)} {list(shape)}")


def check_values(path: Path, moments: np.ndarray, codes: int | None) -> None:
    """Each moment, or code of so many, is looked at when its shard's checksum is compared, which reads the file anyway.

    By the bits of float16, of which numpy compares integers much faster than the numbers: all bits of the exponent are
    set in what is not finite, and the sign's in what is negative, -0 alone excepted.

    Raises:
        ValueError: naming the shard, if a mean or a std, [n, views, 2C, h, w] together, is not finite, or a std is
            negative; or if a code is none of them.
    """
    if codes is not None:
        if moments.size and not 0 <= moments.min() <= moments.max() < codes:
            raise ValueError(f"{path} holds codes beyond 0 ... {codes - 1}: {ANEW}")
        return
    bits = moments.view(np.int16)
    if np.any(bits >= 0x7C00) or np.any((bits >= -0x400) & (bits < 0)):
        raise ValueError(f"{path} holds moments that are not finite: {ANEW}")
    std = bits[:, :, bits.shape[2] // 2 :]
    if np.any((std < 0) & (std > -0x8000)):
        raise ValueError(f"{path} holds standard deviations that are negative: {ANEW}")


def _open_blocks(path: Path) -> list[Block]:
    """A shard's blocks, mapped into memory: in a tar, members lie contiguous and uncompressed.

    A shard is mapped once and not once for each block, because every map holds a file descriptor.
    """
    arrays: dict[str, np.ndarray] = {}
    mapped = np.memmap(path, np.uint8, "r")
    with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
        for member in tar:
            file.seek(member.offset_data)
            version, header = (
                np.lib.format.read_magic(file),
                {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                },
            )
            if version not in header:
                raise ValueError(f"{member.name} has npy's version {version}, not 1.0 or 2.0")
            shape, fortran, dtype = header[version](file)
            if fortran or dtype.hasobject:  # of pointers, the file's bytes would be followed
                raise ValueError(f"{member.name} is {'in Fortran order' if fortran else 'of Python objects'}")
            if file.tell() + dtype.itemsize * math.prod(shape) > member.offset_data + member.size:
                raise ValueError(f"{member.name} ends early")
            arrays[member.name] = np.ndarray(shape, dtype, mapped.data, file.tell())
    blocks, start = [], 0
    for name in sorted(n for n in arrays if n.endswith((f".{MOMENTS}.npy", f".{CODES}.npy"))):
        key = name.rsplit(".", 2)[0]
        labels = np.array(arrays[f"{key}.labels.npy"])
        kept = {each.split(".")[1]: array for each, array in arrays.items() if each.startswith(f"{key}.")}
        blocks.append(Block(start, arrays[name], labels, kept))
        start += len(labels)
    return blocks
