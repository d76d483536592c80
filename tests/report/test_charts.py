"""Curves as shapes: a line's points lie where the ticks beside it say, and thinning keeps means."""

import re

import numpy as np
import pytest

from ldm.report import words
from ldm.report.charts import HEIGHT, POINTS, WIDTH, charts, thinned


def read_off(chart, line):
    """Batches and values of a drawn line, by the first and last tick of each axis alone."""
    points = np.array([[float(n) for n in pair.split()] for pair in re.split("[ML]", line.path)[1:]])
    read = []
    for at, ticks in ((points[:, 0], chart.x_ticks), (points[:, 1], chart.y_ticks)):
        places = [ticks[0].at, ticks[-1].at]
        numbers = [float(tick.text.replace(",", "")) for tick in (ticks[0], ticks[-1])]
        read.append(extrapolated(at, places, numbers))
    return read


def extrapolated(at, places, numbers):
    return numbers[0] + (at - places[0]) * (numbers[1] - numbers[0]) / (places[1] - places[0])


def test_a_line_lies_where_its_ticks_say():
    batches, values = np.arange(10, 130, 10), np.linspace(3, -1, 12) ** 3
    (chart,) = charts({"train/loss": (batches, values)})
    seen, drawn = read_off(chart, chart.lines[0])
    np.testing.assert_allclose(seen, batches, atol=0.5)  # a tenth of a unit of the picture is 0.05 batches
    np.testing.assert_allclose(drawn, values, atol=0.002 * np.ptp(values))


def test_a_logarithmic_line_leaves_out_what_it_cannot_show():
    batches, values = np.array([1, 2, 3, 4]), np.array([0.0, 0.1, 10.0, 1000.0])
    (chart,) = charts({"train/grad_norm": (batches, values)})
    y = [float(pair.split()[1]) for pair in re.split("[ML]", chart.lines[0].path)[1:]]
    assert len(y) == 3
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.15)  # two equal factors of a hundred
    assert chart.lines[0].last == 1000


@pytest.mark.parametrize("values", [np.array([2.0]), np.array([0.5, 0.5]), np.array([1e-9, 1e9])])
def test_every_line_stays_in_its_picture(values):
    (chart,) = charts({"val/psnr": (np.arange(1, len(values) + 1), values)})
    numbers = [float(n) for n in re.findall(r"[\d.]+", chart.lines[0].path)]
    assert all(0 <= x <= WIDTH for x in numbers[::2])
    assert all(0 <= y <= HEIGHT for y in numbers[1::2])


def test_thinning_keeps_the_mean_of_a_long_line_and_all_of_a_straight_one():
    rng = np.random.default_rng(0)
    batches = np.arange(1, 160 * 100 + 2)
    noise = rng.standard_normal(len(batches))
    few, means = thinned(batches, noise)
    assert len(few) == len(means) == POINTS
    assert abs(means[:-1].mean() - noise[:-1].mean()) < 2e-3
    few, straight = thinned(batches, 3.0 * batches)
    np.testing.assert_allclose(straight, 3.0 * few)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "not recorded"), (4.56, "4.56 s"), (190.58, "3 min 11 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds, said):
    assert words.duration(seconds) == said


def test_amounts_and_numbers():
    assert words.amount(7.158e12, "FLOP") == "7.16 TFLOP"
    assert words.amount(1_599_653, "B") == "1.6 MB"
    assert words.number(30720) == "30,720"
    assert words.number(0.15373945541766965) == "0.1537"
    assert words.value(list(range(25))) == ", ".join(map(str, range(20))) + " and 5 more"
