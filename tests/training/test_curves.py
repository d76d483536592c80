"""curves.png: what is drawn, in which order, and that nothing of it is cut off or written over."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ldm.runtime.tables import read_rows
from ldm.training.curves import last_value, validated, write_curves
from ldm.training.plots import _running_mean, chosen_panels, curves


def logged(*names, value=1.5):
    return {name: (np.array([2, 4, 8]), np.array([value, value / 3, value / 7])) for name in names}


STAGE_1 = logged(
    *(f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "l1", "lpips", "kl")),
    *(f"val/{name}" for name in ("psnr", "ssim", "rfd")),
    *(f"train/{name}" for name in ("lr", "disc_lr", "grad_norm", "disc_grad_norm", "skipped", "disc_loss", "g")),
    *(f"train/{name}" for name in ("logits_real", "logits_fake", "logits_gap", "disc_accuracy", "disc_weight")),
    *(f"speed/{name}" for name in ("images_per_s", "tflops", "mfu", "data_s", "forward_s", "backward_s")),
    *(f"latent_{what}/{i}" for what in ("mean", "std", "kurtosis", "kl") for i in range(16)),
)
STAGE_2 = logged(
    "train/loss", "val/loss", "train/lr", "train/grad_norm", "speed/images_per_s", "speed/data_s", "speed/forward_s"
) | logged(*(f"{stage}_by_time/{i / 10}" for stage in ("train", "val") for i in range(10)))


def titles(series):
    return [panel.title for panel, _ in chosen_panels(series)]


def test_panels_stand_in_the_order_of_their_use():
    order = titles(STAGE_2)
    assert order[:3] == ["loss", "loss by time, training", "loss by time, validation"]
    assert order[3:] == ["learning rate", "gradient norm", "images / s", "seconds a batch"]
    order = titles(STAGE_1)
    wanted = [
        "loss",
        "PSNR (dB), validation",
        "logits",
        "latents: mean",
        "learning rate",
        "gradient norm",
        "images / s",
    ]
    assert [title for title in order if title in wanted] == wanted
    assert order[0] == "loss"


@pytest.mark.parametrize("series", [STAGE_1, STAGE_2], ids=["stage 1", "stage 2"])
def test_every_metric_is_drawn_once_and_labels_tell_lines_apart(series):
    panels = chosen_panels(series)
    drawn = [name for _, members in panels for name in members]
    assert sorted(drawn) == sorted(series)
    for panel, members in panels:
        assert len(set(members.values())) == len(members), panel.title


def test_what_is_not_computed_and_what_never_happened_is_not_drawn():
    series = logged("val/lpips", "train/my_own") | logged("train/lpips", "train/skipped", "train/logvar", value=0.0)
    assert titles(series) == ["LPIPS", "train/my_own"]
    assert chosen_panels(series)[0][1] == {"val/lpips": "validation"}


def overlap(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def shown(axis):
    """The labels of the ticks that lie within the axis' limits: matplotlib keeps others, which it does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize("count", [1, 3, 5, 13])
def test_no_text_is_cut_off_or_written_over_at_any_number_of_rows(count):
    """By matplotlib's own extents of what it draws."""
    series = logged(*(f"val/a metric of my own, the {i}th" for i in range(count)), value=1.234567e-5)
    figure = curves("runs/a/long/name", series, chosen_panels(series))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    names = [axis.title for axis in figure.axes] + [axis._left_title for axis in figure.axes] + figure.texts
    ticks = [label for axis in figure.axes for label in shown(axis.xaxis) + shown(axis.yaxis)]
    labels = [axis.xaxis.label for axis in figure.axes]
    boxes = [text.get_window_extent(renderer) for text in [*names, *ticks, *labels] if text.get_text()]
    assert len(boxes) > count
    width, height = figure.get_size_inches() * figure.dpi
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]


def test_a_running_mean_is_numpys_and_leaves_constants_alone():
    values = np.random.default_rng(0).normal(size=50)
    for i in range(50):
        assert _running_mean(values, 10)[i] == pytest.approx(values[max(i - 5, 0) : i + 6].mean())
    assert np.array_equal(_running_mean(np.full(50, 63.2), 10), np.full(50, 63.2))


def test_curves_are_drawn_from_the_csv_log(tmp_path):
    start = tmp_path / "csv" / "version_0" / "metrics.csv"
    start.parent.mkdir(parents=True)
    start.write_text("epoch,step,train/loss,train/lr,val/loss\n0,0,1.0,0.1,\n0,1,,,0.9\n0,1,0.8,0.1,\n")
    write_curves(tmp_path, draw=True)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,train/loss,train/lr,val/loss",
        "0,1.0,0.1,",
        "1,0.8,0.1,0.9",
    ]


def write_start(folder, number, steps, text=None):
    """The CSV log of a start of a run that logged these steps."""
    path = folder / "csv" / f"version_{number}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    lines = ["step,train/lr,train/loss", *(f"{step},0.1,{number}.{step}" for step in steps)]
    path.write_text("\n".join(lines) + "\n" if text is None else text)
    return path


def steps_of(folder):
    return [int(row["step"]) for row in read_rows(folder / "metrics.csv")]


@pytest.mark.parametrize("damage", ["", "step,train/lr\n", "nonsense\x00\n1,2", "step,train/lr\nx,1\n"])
def test_an_earlier_starts_rows_outlive_its_log(damage, tmp_path):
    """metrics.csv holds them, too; what was gone back behind is not kept."""
    first = write_start(tmp_path, 0, range(6))
    write_curves(tmp_path, draw=False)
    first.write_text(damage)
    write_start(tmp_path, 1, range(4, 5))
    write_curves(tmp_path, draw=False)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]
    assert [row["train/loss"] for row in read_rows(tmp_path / "metrics.csv")] == ["0.0", "0.1", "0.2", "0.3", "1.4"]


def test_rows_that_cannot_be_read_are_left_out_and_said(tmp_path, caplog):
    (tmp_path / "metrics.csv").write_bytes(b"step,val/loss\n0,1.5\n\xff\xfe,2\nthree,4\n1,abc\n2,0.5\n")
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["0", "1", "2"]
    assert "metrics.csv is damaged: 2 of its 5 rows can't be read" in caplog.text
    assert last_value(tmp_path, "val/loss") == 0.5
    assert validated(tmp_path, 3)
    assert not validated(tmp_path, 9)
