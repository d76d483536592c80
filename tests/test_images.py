"""Pictures: what stands where, and what is written beside it."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.images import GAP, INK, PAPER, Key, annotate, class_rows, grid, save_png


def white(rows, columns, side=16):
    """A grid of white images, so that all that is dark was written by `annotate`."""
    return grid(torch.full((rows * columns, 3, side, side), 255, dtype=torch.uint8), columns)


@pytest.mark.parametrize("rows", [1, 2, 10, 40])
def test_a_name_stands_beside_the_middle_of_its_row_at_any_number_of_rows(rows):
    plain = white(rows, 4)
    named = annotate(plain, rows=[str(i) for i in range(rows)])
    left = named.shape[2] - plain.shape[2]
    assert (named.shape[1], named[:, :, left:].equal(plain)) == (plain.shape[1], True)
    dark = (named[:, :, :left].float().mean(0) < 200).any(1)  # [H]
    height = (plain.shape[1] - GAP) / rows
    for i in range(rows):
        top = GAP + i * height
        at = dark[round(top) : round(top + height)].nonzero().flatten() + round(top)
        middle = (at.min() + at.max()).item() / 2
        assert middle == pytest.approx(top + height / 2, abs=max(0.1 * height, 3)), i


def test_a_long_name_is_cut_and_takes_no_more_room_than_ten_letters_are_high():
    plain = white(3, 8)
    short, long = (
        annotate(plain, rows=[name] * 3) for name in ("cat", "chambered nautilus, pearly nautilus, nautilus")
    )
    assert short.shape[2] < long.shape[2] < plain.shape[2] * 1.4


def test_columns_and_a_key_stand_above_and_below():
    plain = white(2, 4)
    ramp = torch.stack([torch.full((9,), 200), torch.zeros(9), torch.zeros(9)]).to(torch.uint8)  # [3, 9], red
    full = annotate(plain, columns=["a", "b", "c", "d"], key=Key(ramp, "low", "high"))
    above = full.shape[1] - annotate(plain, key=Key(ramp, "low", "high")).shape[1]
    assert above > 0
    dark = (full[:, :above].float().mean(0) < 200).any(0)  # [W]
    for column in dark.chunk(4):
        assert column.any()
    below = full[:, above + plain.shape[1] :]
    reds = (below == torch.tensor([200, 0, 0]).view(3, 1, 1)).all(0).any(0).nonzero().flatten()  # where the ramp is
    assert len(reds) > 50
    dark = (below.float().mean(0) < 200).any(0)
    assert dark[: reds.min()].any()  # "low"
    assert dark[reds.max() + 1 :].any()  # "high"


def test_a_key_is_whole_below_a_narrow_picture():
    plain = white(12, 1)
    ramp = torch.full((3, 9), 180, dtype=torch.uint8)  # pale: only the words are dark
    picture = annotate(plain, key=Key(ramp, "the low end in words", "the high end in words"))
    assert picture.shape[2] > plain.shape[2]
    dark = (picture[:, plain.shape[1] :].float().mean(0) < 150).any(0).nonzero().flatten()  # columns with letters
    gaps = dark.diff()
    assert gaps.max() > 50  # the ramp
    low, high = gaps.argmax() + 1, len(gaps) - gaps.argmax()
    assert 0.8 < low / high < 1.25  # both ends have their words, which are equally long
    assert dark.max() < picture.shape[2] - 2


def test_without_names_a_picture_is_as_it_was(tmp_path):
    plain = white(2, 2)
    assert annotate(plain).equal(plain)
    save_png(tmp_path / "a.png", plain)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.array(image), plain.permute(1, 2, 0).numpy())
    assert (INK, PAPER) == ((64, 64, 64), (255, 255, 255))


def test_a_grid_has_a_row_a_class():
    samples, names = torch.arange(1000), [f"class {i}" for i in range(1000)]
    shown, columns, rows = class_rows(samples, [i % 10 for i in range(1000)], names)
    assert (columns, rows) == (10, names[:10])
    assert torch.equal(shown.reshape(10, 10) % 10, torch.arange(10)[:, None].expand(10, 10))
    shown, columns, rows = class_rows(samples[:23], [i % 10 for i in range(23)], names)
    assert (columns, rows) == (2, names[:10])
    assert torch.equal(shown.reshape(10, 2) % 10, torch.arange(10)[:, None].expand(10, 2))


def test_chosen_classes_are_named_by_their_own_names():
    shown, columns, rows = class_rows(torch.arange(8), [3, 5] * 4, [f"class {i}" for i in range(9)])
    assert (columns, rows) == (4, ["class 3", "class 5"])
    assert shown.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_one_class_needs_no_names_and_too_few_samples_say_from_which_class_to_which():
    samples, names = torch.arange(40), [f"class {i}" for i in range(1000)]
    assert class_rows(samples, [7] * 40, names)[1:] == (10, [])
    assert class_rows(samples, [7] * 40, names)[0].tolist() == list(range(40))
    shown, columns, rows = class_rows(samples[:25], list(range(25)), names)
    assert (shown.tolist(), columns) == (list(range(20)), 10)
    assert rows == ["class 0\nto class 9", "class 10\nto class 19"]
