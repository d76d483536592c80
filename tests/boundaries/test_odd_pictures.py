"""Files behind the names of pictures: pipes, devices, other formats, sizes without end, links, odd names."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.image_files import write_images
from support.refusals import assert_refused, time_limit

from ldm.data.listing import list_images
from ldm.data.sources import Folder

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(pwned) (w) file closefile\nshowpage\n"


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose header says so, whatever follows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


GREY = Image.new("L", (8, 8), 7)
FILES = {
    "eps": (EPS, "cannot identify image file"),
    "gif": (saved(GREY, "GIF"), "cannot identify image file"),
    "bmp": (saved(GREY, "BMP"), "cannot identify image file"),
    "tiff": (saved(GREY, "TIFF"), "cannot identify image file"),
    "empty": (b"", "cannot identify image file"),
    "text": (b"<html>404</html>", "cannot identify image file"),
    "cut": (saved(GREY, "PNG")[:50], "cannot decode"),
    "jpeg cut": (saved(GREY.resize((300, 300)), "JPEG")[:300], "cannot decode"),
    "huge": (png_of(100_000, 100_000), "pixels"),
    "wide": (png_of(1_000_000, 1), "1,000,000 x 1 pixels are too oblong for a short side of 16"),
    "tall": (png_of(1, 1_000_000), "1 x 1,000,000 pixels are too oblong for a short side of 16"),
    "no side": (png_of(0, 8), "cannot decode"),
    "bomb": (png_of(8000, 8000, zlib.compress(bytes(100))), "cannot decode"),
}


def read_all(folder: Path, **options: Any) -> list[Any]:
    source = Folder(root=str(folder), val_fraction=0.1, resolution=16, **options)
    samples = [sample for split in ("train", "val") for part in source.parts(split, 5) for sample in part.samples()]
    images = [source.decode(sample) for sample in samples]
    return [source.center_view(image) for image in images if image is not None]


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_picture_of_a_bounded_size_is_named_or_skipped(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 3)
    data, said = FILES[kind]
    (tmp_path / "odd.png").write_bytes(data)
    assert_refused(lambda: read_all(tmp_path), said, tmp_path, "odd.png")
    assert_refused(lambda: read_all(tmp_path), "Remove it, or pass data.on_error=skip", tmp_path)
    with time_limit():
        assert len(read_all(tmp_path, on_error="skip")) == 3
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kind", ["pipe", "zeros", "socket"])
def test_what_never_ends_is_no_picture_and_that_is_said(kind, tmp_path, caplog):
    write_images(tmp_path, 3)
    odd = tmp_path / "odd.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "zeros":
        odd.symlink_to("/dev/zero")
    else:
        os.mknod(odd, 0o140644)
    with time_limit():
        assert len(read_all(tmp_path)) == 3
    assert "left out a file that is not jpg, png or webp: 1 no regular file" in caplog.text


def test_a_dangling_link_and_a_file_that_became_a_pipe_are_named_or_skipped(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / "odd.png").symlink_to("nowhere.png")
    assert_refused(lambda: read_all(tmp_path), "No such file", tmp_path, "odd.png")
    assert len(read_all(tmp_path, on_error="skip")) == 3
    source = Folder(root=str(tmp_path), val_fraction=0.1, resolution=16)
    assert source.count("train") == 3
    for path in tmp_path.iterdir():
        path.unlink()
        os.mkfifo(path)
    assert_refused(lambda: source.decode(source.read("train", 0)), "it is no regular file", tmp_path)


def test_folders_that_lie_in_themselves_are_read_once(tmp_path, caplog):
    write_images(tmp_path / "cat", 4)
    write_images(tmp_path / "dog", 4, seed=1)
    (tmp_path / "cat" / "self").symlink_to(".")
    (tmp_path / "dog" / "up").symlink_to("..")
    with time_limit():
        assert len(read_all(tmp_path)) == 8
    assert "links to folders that they lie in" in caplog.text


def test_numbers_as_classes_are_in_the_order_of_numbers(tmp_path):
    for name in range(12):
        write_images(tmp_path / str(name), 1, seed=name)
    listing = list_images(str(tmp_path), "data.root")
    assert listing.class_names == [str(i) for i in range(12)]
    assert {path.parent.name: label for path, label in listing.images} == {str(i): i for i in range(12)}


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Val"), ("training", "testing"), ("dev", "eval")]
)
def test_splits_are_no_classes(names, tmp_path):
    for name in names:
        write_images(tmp_path / name, 2)
    assert_refused(lambda: read_all(tmp_path), "holds splits", tmp_path, "data.root=")


def test_a_name_that_is_no_text_is_no_class(tmp_path):
    for name in (b"cat", b"d\xffg"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        write_images(folder, 2)
    assert_refused(lambda: read_all(tmp_path), "has a class whose name is no readable text", tmp_path)


def test_a_file_whose_name_is_no_text_is_read_and_can_be_said(tmp_path):
    write_images(tmp_path, 3)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/o\xff.png"))
    odd.write_bytes((tmp_path / "000.png").read_bytes())
    assert len(read_all(tmp_path)) == 4
    odd.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot decode") as info:
        read_all(tmp_path)
    assert str(info.value).encode("latin-1", errors="backslashreplace")


def test_what_is_transparent_is_white_whatever_lies_below(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    noise[..., 3] = 0
    for i in range(2):
        Image.fromarray(noise, "RGBA" if i else None).save(tmp_path / f"{i}.png")
    for view in read_all(tmp_path):
        assert (view == 255).all()


def test_of_16_bits_the_upper_8_are_kept_and_12_bits_are_warned_of(tmp_path, caplog):
    from ldm.data import decoding

    decoding._warned.cache_clear()
    full = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(full).save(tmp_path / "0.png")
    Image.fromarray((full // 16).astype(np.uint16)).save(tmp_path / "1.png")
    views = {int(view.max()) for view in read_all(tmp_path)}
    assert views == {255, 15}
    assert caplog.text.count("data of 12 bits come out near black") == 1


def test_what_a_folder_holds_is_said_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO")
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 5)
    read_all(tmp_path)
    assert f"{tmp_path}: 7 images in 2 classes of 2 to 5" in caplog.text
