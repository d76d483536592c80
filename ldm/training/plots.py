"""RUN/curves.png: what was logged, in panels ordered by use: losses, scores, the adversarial game, latents, rates,
gradients, speed."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[np.ndarray, np.ndarray]  # batches and values, [N] each


@dataclass(frozen=True)
class Panel:
    """What one panel shows.

    Args:
        title  : above it
        lines  : metric -> its line's label; {name: ""} is a panel of one line, which its title names
        family : or a pattern with one group, of metrics that differ in a number: a channel or a time
        key    : of a family: what that number is
        log    : whether the values' axis is logarithmic
    """

    title: str
    lines: dict[str, str] | None = None
    family: str = ""
    key: str = ""
    log: bool = False


def _both(title: str, name: str) -> Panel:
    return Panel(title, {f"train/{name}": "training", f"val/{name}": "validation"})


PANELS = (
    _both("loss", "loss"),
    _both("L1", "l1"),
    _both("LPIPS", "lpips"),
    Panel("loss by time, training", family=r"train_by_time/(\d+\.?\d*)", key="t"),
    Panel("loss by time, validation", family=r"val_by_time/(\d+\.?\d*)", key="t"),
    Panel("PSNR (dB), validation", {"val/psnr": ""}),
    Panel("SSIM, validation", {"val/ssim": ""}),
    Panel("reconstruction FD, validation", {"val/rfd": ""}),
    Panel("FD of samples, validation", {"val/fd": ""}),
    Panel("class accuracy of samples, validation", {"val/class_accuracy": ""}),
    _both("KL (nats an image)", "kl"),
    Panel("log-variance of the likelihood", {"train/logvar": ""}),
    Panel("adversarial losses", {"train/disc_loss": "discriminator", "train/g": "autoencoder"}),
    Panel("logits", {"train/logits_real": "real", "train/logits_fake": "reconstructed", "train/logits_gap": "gap"}),
    Panel("discriminator's accuracy", {"train/disc_accuracy": ""}),
    Panel("adaptive weight", {"train/disc_weight": ""}),
    Panel("weight at its clamp (share)", {"train/disc_weight_clamped_share": "", "train/disc_weight_clamped": "now"}),
    Panel("weight of the adversarial term", {"train/disc_factor": ""}),
    Panel("discriminator's penalties", {"train/r1": "R1", "train/lecam": "LeCam"}),
    Panel("latents: mean", family=r"latent_mean/(\d+\.?\d*)", key="channel"),
    Panel("latents: standard deviation", family=r"latent_std/(\d+\.?\d*)", key="channel"),
    Panel("latents: excess kurtosis", family=r"latent_kurtosis/(\d+\.?\d*)", key="channel"),
    Panel("latents: KL (nats)", family=r"latent_kl/(\d+\.?\d*)", key="channel"),
    Panel("learning rate", {"train/lr": "network", "train/disc_lr": "discriminator"}),
    Panel("gradient norm", {"train/grad_norm": "network", "train/disc_grad_norm": "discriminator"}, log=True),
    Panel("skipped steps", {"train/skipped": "network", "train/disc_skipped": "discriminator"}),
    Panel("images / s", {"speed/images_per_s": ""}),
    Panel(
        "seconds a batch",
        {
            "speed/data_s": "data",
            "speed/forward_s": "forward",
            "speed/backward_s": "backward",
            "speed/optimizer_s": "optimiser",
            "speed/rest_s": "rest",
        },
    ),
    Panel("TFLOP / s, a rank", {"speed/tflops": ""}),
    Panel("share of the device's peak", {"speed/mfu": ""}),
    Panel("GPU memory (GiB), most", {"speed/gpu_memory_gb": ""}),
)

COLORS = ("#3b6ea5", "#d1793a", "#6a9a58", "#8d6cab", "#8a8a8a")
INK, PALE = "#404040", "#e4e4e4"
COLUMNS = 4
# inches: a panel with what stands around it, and the margins of the picture
WIDTH, HEIGHT, TOP, BOTTOM, LEFT, RIGHT, GAP = 3.4, 2.3, 0.55, 0.45, 0.6, 0.25, 0.65
NOISY = 200  # points above which a line is drawn pale, with its running mean over it


def chosen_panels(series: dict[str, Series]) -> list[tuple[Panel, dict[str, str]]]:
    """The panels that have something to show, with metric -> label; a metric that no panel knows has its own, at the
    end. What is 0 throughout is left out: it was switched off, or did not happen."""
    left = {name: None for name, (_, values) in series.items() if np.any(values != 0)}
    chosen = []
    for panel in PANELS:
        if panel.lines is not None:
            members = {name: label for name, label in panel.lines.items() if name in left}
        else:
            matches = {name: match for name in left if (match := re.fullmatch(panel.family, name))}
            members = {name: matches[name][1] for name in sorted(matches, key=lambda name: float(matches[name][1]))}
        if members:
            chosen.append((panel, members))
        for name in members:
            del left[name]
    return chosen + [(Panel(name, {name: ""}), {name: ""}) for name in sorted(left)]


def draw_curves(path: Path, run: str, series: dict[str, Series]) -> None:
    """Draw every metric over the batches, into a PNG."""
    panels = chosen_panels(series)
    if panels:
        with atomic_write(path) as file:
            curves(run, series, panels).savefig(file, format="png", dpi=100)


def curves(run: str, series: dict[str, Series], panels: list[tuple[Panel, dict[str, str]]]) -> "Figure":
    """The picture: each panel's metrics, by their labels, over the batches of the run."""
    figure, axes = _panes(len(panels))
    figure.text(LEFT / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight(), run, va="top", color=INK, fontsize=10)
    last = max(batches[-1] for batches, _ in series.values())
    for axis, (panel, members) in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, {label: series[name] for name, label in members.items()})
        axis.set_xlim(0, 1.02 * last)
    for axis in axes[-min(COLUMNS, len(axes)) :]:
        axis.set_xlabel("batches", fontsize=8, color=INK)
    return figure


def _panes(count: int) -> "tuple[Figure, list[Axes]]":
    """A figure with that many panes. Its margins are in inches, so that they are the same at any number of rows."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    width, height = LEFT + columns * WIDTH + RIGHT - GAP, TOP + rows * HEIGHT + BOTTOM - GAP
    figure = Figure(figsize=(width, height))
    axes = []
    for i in range(count):
        left, top = LEFT + i % columns * WIDTH, TOP + i // columns * HEIGHT
        w, h = WIDTH - GAP, HEIGHT - GAP
        axes.append(figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height)))
    return figure, axes


def _draw_panel(axis: "Axes", panel: Panel, lines: dict[str, Series]) -> None:
    """Draw lines by label: a family's in a ramp of colours and with a few of its labels, others in separate colours."""
    colors = _ramp(len(lines)) if panel.family else COLORS[: len(lines)]
    drawn = []
    for (label, (batches, values)), color in zip(lines.items(), colors, strict=True):
        if len(values) > NOISY:
            axis.plot(batches, values, color=color, alpha=0.25, linewidth=0.6)
            values = _running_mean(values, len(values) // 50)
        marker = "." if len(values) < 20 else None
        drawn += axis.plot(batches, values, color=color, linewidth=1.2, marker=marker, label=label)
    title = panel.title
    if panel.lines is not None and len(panel.lines) > len(lines) == 1:  # the others were not logged
        title = f"{title}, {next(iter(lines))}"
    axis.set_title(title, loc="left", fontsize=9, color=INK)
    _quieten(axis, panel.log)
    if len(lines) > 1:
        legend = axis.legend(
            handles=[drawn[i] for i in _spread(len(drawn), 4)] if panel.family else drawn,
            title=panel.key or None,
            title_fontsize=7,
            fontsize=7,
            labelcolor=INK,
            handlelength=1.2,
            framealpha=0.8,
        )
        legend.get_frame().set_linewidth(0)
        legend.get_title().set_color(INK)


def _quieten(axis: "Axes", log: bool) -> None:
    """Pale grid, small numbers written out, no frame."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(PALE)
    axis.tick_params(labelsize=7, labelcolor=INK, color=PALE, which="both")
    axis.grid(color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.locator_params(axis="x", nbins=5, integer=True)
    if log:
        axis.set_yscale("log", nonpositive="mask")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 200 * low else (1, 2, 5)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def _ramp(count: int) -> list[tuple[float, ...]]:
    """Colours from dark to light, as far as they are legible on white."""
    from matplotlib import colormaps

    return [tuple(colormaps["viridis"](x)) for x in np.linspace(0, 0.9, count)]


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of count indices, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over `window` values around each, over fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values - values[0])])  # so that a constant stays one to the last digit
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    return values[0] + (sums[high] - sums[low]) / (high - low)
