"""Curves as shapes to be drawn: panels, lines and ticks in the units of a small picture, without colours or tags."""

from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from ldm.report.facts import Series
from ldm.training.plots import Panel, chosen_panels

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 168, 46, 8, 8, 22  # of a panel's picture
POINTS = 160  # of a line at most: a longer one is shown by the means of as many stretches
TICKS = 4


@dataclass(frozen=True)
class Tick:
    """A number at an axis. at: its place along the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One metric.

    Args:
        label : of the line; "" where the panel's title names it
        path  : as SVG's path has it
        last  : the last value
        share : of a family's ramp of colours, from 0 to 1
    """

    label: str
    path: str
    last: float
    share: float


@dataclass(frozen=True)
class Chart:
    """A panel. family: what the lines' labels are, where they are numbers: a channel, a time; else ""."""

    title: str
    family: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    said: str


def charts(series: Series) -> list[Chart]:
    """A chart for each panel that has something to show, ordered by use, as curves.png has them."""
    if not series:
        return []
    last = max(float(batches[-1]) for batches, _ in series.values())
    return [chart(panel, {label: series[name] for name, label in members.items()}, last)
            for panel, members in chosen_panels(dict(series))]  # fmt: skip


def chart(panel: Panel, lines: Series, last: float) -> Chart:
    """One panel over the batches from 0 to the last of the run; of a logarithmic one, the values above 0."""
    shown = {label: thinned(*above_zero(batches, values, panel.log)) for label, (batches, values) in lines.items()}
    shown = {label: line for label, line in shown.items() if len(line[0])}
    values = np.concatenate([line[1] for line in shown.values()]) if shown else np.array([1.0])
    low, high = limits(values, panel.log)
    y_ticks = [tick for tick in ticks(low, high, panel.log) if low <= tick <= high]

    def y(value: np.ndarray) -> np.ndarray:
        a, b, v = (np.log(low), np.log(high), np.log(value)) if panel.log else (low, high, value)
        return HEIGHT - BOTTOM - (v - a) / (b - a) * (HEIGHT - BOTTOM - TOP)

    def x(batch: np.ndarray) -> np.ndarray:
        return LEFT + batch / last * (WIDTH - LEFT - RIGHT)

    title = panel.title
    if panel.lines is not None and len(panel.lines) > len(lines) == 1:  # the others were not logged
        title = f"{title}, {next(iter(lines))}"
    drawn = tuple(
        Line(
            label if len(lines) > 1 else "", path(x(batches), y(values)), float(values[-1]), i / max(1, len(shown) - 1)
        )
        for i, (label, (batches, values)) in enumerate(shown.items())
    )
    x_ticks = [tick for tick in MaxNLocator(3, integer=True).tick_values(0, last) if 0 <= tick <= last]
    said = "; ".join(f"{label or title} ends at {line[1][-1]:.4g}" for label, line in shown.items())
    return Chart(
        title=title,
        family=panel.key,
        lines=drawn,
        x_ticks=tuple(Tick(round(float(x(np.array(tick))), 1), f"{tick:,.0f}") for tick in x_ticks),
        y_ticks=tuple(Tick(round(float(y(np.array(tick))), 1), f"{tick:.4g}") for tick in y_ticks),
        said=f"{title} over {last:,.0f} batches: {said}",
    )


def above_zero(batches: np.ndarray, values: np.ndarray, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """What a logarithmic axis can show."""
    return (batches[values > 0], values[values > 0]) if log else (batches, values)


def thinned(batches: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: each the mean over a stretch, the last as it is."""
    if len(values) <= POINTS:
        return batches, values
    edges = np.linspace(0, len(values) - 1, POINTS).astype(int)
    counts = np.diff(edges)
    means = [np.add.reduceat(each[:-1].astype(float), edges[:-1]) / counts for each in (batches, values)]
    return np.append(means[0], batches[-1]), np.append(means[1], values[-1])


def limits(values: np.ndarray, log: bool) -> tuple[float, float]:
    """The ends of the values' axis, with some room."""
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.2, high * 1.2
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room


def ticks(low: float, high: float, log: bool) -> np.ndarray:
    """Round numbers between the ends, a few."""
    if not log:
        return np.asarray(MaxNLocator(TICKS).tick_values(low, high))
    found = np.asarray(LogLocator(subs=(1,) if high > 200 * low else (1, 2, 5)).tick_values(low, high))
    inside = found[(found >= low) & (found <= high)]
    return inside[:: -(-len(inside) // 6)] if len(inside) else np.array([low, high])


def path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through points; a single point is drawn as a dot, by the line's round ends."""
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)]
    return f"M{'L'.join(points * 2 if len(points) == 1 else points)}"
