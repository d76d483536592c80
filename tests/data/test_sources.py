import io
import multiprocessing
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import write_images

from ldm.data.image_data import in_order
from ldm.data.order import Order
from ldm.data.sources import Digits, Folder


def folder(root, **options):
    return Folder(**{"root": str(root), "resolution": 16} | options)


def test_digits_are_scikit_learns_split_without_overlap():
    digits = Digits(resolution=32)
    assert (digits.count("train"), digits.count("val")) == (1500, 297)
    keys = [digits.read(s, i).key for s in ("train", "val") for i in range(digits.count(s))]
    assert len(set(keys)) == 1797
    image = digits.center_view(digits.decode(digits.read("train", 0)))
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8


def test_folder_reads_classes_and_holds_out_a_share(photos):
    source = folder(photos, val_fraction=0.2)
    assert source.class_names == ["cat", "dog"]
    assert (source.count("train"), source.count("val")) == (16, 4)
    read = [source.read(s, i) for s in ("train", "val") for i in range(source.count(s))]
    assert sorted(s.label for s in read) == [0] * 12 + [1] * 8
    assert len({s.key for s in read}) == 20


def test_flat_folder_is_one_class(tmp_path):
    write_images(tmp_path / "flat", 5)
    source = folder(tmp_path / "flat", val_root=str(tmp_path / "flat"))
    assert source.class_names == ["all"]
    assert source.count("val") == 5


def test_center_view_is_pillows_resize_and_crop(photos):
    source = folder(photos, resize=24)
    path = photos / "cat" / "000.png"
    image = Image.open(path).convert("RGB")  # 40 x 30 -> 32 x 24 -> the middle 16 x 16
    oracle = image.resize((32, 24), Image.Resampling.BICUBIC).crop((8, 4, 24, 20))
    np.testing.assert_array_equal(source.center_view(image).permute(1, 2, 0), np.asarray(oracle))


def test_training_views_are_crops_of_the_resized_image_and_its_mirror(photos):
    source = folder(photos, resize=24, crop="random", flip=True)
    image = Image.open(photos / "cat" / "000.png").convert("RGB")
    resized = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    crops = {
        view[:, top : top + 16, left : left + 16].tobytes(): (mirrored, top)
        for mirrored, view in ((False, resized), (True, resized[:, :, ::-1]))
        for top in range(9)
        for left in range(17)
    }
    found = [crops[source.training_view(image, np.random.default_rng(i)).numpy().tobytes()] for i in range(200)]
    assert {mirrored for mirrored, _ in found} == {False, True}
    assert {top for _, top in found} == set(range(9))


def test_training_data_do_not_depend_on_the_number_of_workers(photos):
    source = folder(photos, crop="random", resize=24, flip=True)
    order = Order(seed=0, batch_size=3)
    runs = [list(islice(source.training_loader(order, workers), 12)) for workers in (0, 2)]
    for (image, label), (image2, label2) in zip(*runs, strict=True):
        assert torch.equal(image, image2)
        assert torch.equal(label, label2)


def test_in_order_sees_each_image_once_over_ranks_and_workers(photos):
    source = folder(photos)
    loaders = [in_order(source, "train", 4, workers, rank, 2) for rank, workers in ((0, 2), (1, 0))]
    assert sum(len(image) for loader in loaders for image, _ in loader) == source.count("train")


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_gets_a_validation_image(photos, world):
    source = folder(photos, val_fraction=0.2)
    counts = [sum(len(image) for image, _ in in_order(source, "val", 4, 0, rank, world)) for rank in range(world)]
    assert counts == [4 // world] * world


def test_folders_are_followed_through_links_and_hidden_files_left_out(photos, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(photos / "cat")
    write_images(tmp_path / "linked" / ".thumbs", 2)
    (tmp_path / "linked" / "cat" / "._000.png").write_bytes(b"macOS")
    source = folder(tmp_path / "linked", val_root=str(tmp_path / "linked"))
    assert (source.class_names, source.count("train")) == (["cat"], 12)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    (tmp_path / "g").mkdir()
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "g" / "0.png")
    source = folder(tmp_path / "g", val_root=str(tmp_path / "g"))
    view = source.center_view(source.decode(source.read("train", 0)))
    assert abs(view.float().mean() - 127.5) < 1


def test_corrupt_image_is_named(photos):
    (photos / "cat" / "broken.jpg").write_bytes(b"not a picture")
    source = folder(photos, val_root=str(photos))
    with pytest.raises(ValueError, match=r"cannot decode .*broken\.jpg.* data\.on_error=skip"):
        list(in_order(source, "val", 8))
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        list(islice(source.training_loader(Order(seed=0, batch_size=7), 0), 3))


def test_truncated_jpeg_is_named_too(photos):
    buffer = io.BytesIO()
    Image.open(photos / "cat" / "000.png").save(buffer, format="JPEG")
    (photos / "cat" / "short.jpg").write_bytes(buffer.getvalue()[:-400])
    with pytest.raises(ValueError, match=r"cannot decode .*short\.jpg"):
        list(in_order(folder(photos, val_root=str(photos)), "val", 8))


def test_skipped_images_are_counted(photos, capsys):
    (photos / "cat" / "broken.jpg").write_bytes(b"not a picture")
    source = folder(photos, val_root=str(photos), on_error="skip")
    assert sum(len(image) for image, _ in in_order(source, "val", 8, num_workers=2)) == 20
    assert source.skipped.value == 1
    source.report_skipped()
    assert "can't be decoded 1 times" in capsys.readouterr().out
    assert all(len(image) == 7 for image, _ in islice(source.training_loader(Order(seed=0, batch_size=7), 0), 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"data\.root=.* does not exist"),
        (lambda p: p.mkdir(), r"data\.root=.* holds no images \(jpg, jpeg, png, webp\)"),
        (lambda p: (write_images(p, 1), write_images(p / "cat", 1)), "mixes class subfolders with loose images"),
        (lambda p: (write_images(p / "train" / "a", 1), write_images(p / "test" / "a", 1)), r"data\.root=.*/train"),
        (lambda p: write_images(p, 1), "too few to hold one out"),
    ],
)
def test_unusable_folders(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(ValueError, match=message):
        folder(tmp_path / "root").count("train")


@pytest.mark.parametrize("wrong", [{"crop": "corner"}, {"on_error": "ignore"}, {"resize": 8}])
def test_bad_options(photos, wrong):
    with pytest.raises(ValueError, match=r"data\.(crop|on_error|resize)"):
        folder(photos, **wrong)


def test_val_classes_must_be_the_training_classes(photos, tmp_path):
    write_images(tmp_path / "val" / "cat", 2)
    with pytest.raises(ValueError, match=r"data\.val_root has the classes \['cat'\], data\.root \['cat', 'dog'\]"):
        folder(photos, val_root=str(tmp_path / "val")).count("train")


def test_counter_is_shared_with_forked_workers():
    assert isinstance(Digits(resolution=8).skipped, type(multiprocessing.Value("q")))


def test_photographs_are_turned_upright(tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # "rotated by 180 degrees"
    (tmp_path / "r").mkdir()
    Image.fromarray(pixels).save(tmp_path / "r" / "0.png", exif=exif)
    source = folder(tmp_path / "r", resolution=20, val_root=str(tmp_path / "r"))
    view = source.center_view(source.decode(source.read("train", 0)))
    assert (view[:, 0].max(), view[:, -1].min()) == (0, 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / ("0.jpg" if mode == "CMYK" else "0.png")
    Image.new("L" if mode == "I;16" else mode, (9, 9)).convert(mode).save(path)
    source = folder(tmp_path / "m", val_root=str(tmp_path / "m"))
    assert source.center_view(source.decode(source.read("train", 0))).shape == (3, 16, 16)
