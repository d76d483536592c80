"""A sweep's points as a table and a picture: runs/RUN/summary.csv, summary.png."""

import csv
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from ldm.commands.options import Options
from ldm.commands.sweep_points import POINT, PointFile
from ldm.evaluation.result_files import MetricsFile
from ldm.runtime.files import atomic_write, existing_folder, flat

RETURNED = "returned"  # the column of what the command returned to the sweep
RETURNS = {"probe": "frechet_distance", "evaluate": "frechet_distance"}  # the others name it by their `returns`
LARGER_IS_BETTER = ("psnr", "ssim", "accuracy", "precision", "recall", "density", "coverage", "inception_score")
LOSSES = ("loss", "nll")  # last parts of the names of metrics that each point defines for itself, by these keys:
OF_LOSSES = ("objective", "loss", "regularizer", "data", "latents")
OF_SAMPLING = "objective.sampling"  # but for this one, which no loss depends on


class SummarizeOptions(Options):
    """conf/summarize.yaml, which says what each key means."""

    columns: list[str]
    best: Literal["min", "max"] | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a sweep, as its folder tells.

    Args:
        folder: its run folder.
        state: finished, unfinished or failed.
        error: why it failed; None otherwise.
        config: its config, flat: {"optimizer.lr": 0.001}.
        swept: what the sweep gave it: {"objective": "flow"}; {} in a card from before version 0.2.
        choices: of its groups.
        returns: name of the metric that it returns.
        values: metrics, by column; None where there is none.
    """

    folder: Path
    state: str
    error: str | None
    config: dict[str, Any]
    swept: dict[str, str]
    choices: dict[str, str | None]
    returns: str
    values: dict[str, float | None]

    @classmethod
    def read(cls, folder: Path, columns: list[str]) -> "Point":
        """columns: further metrics, of its metrics.csv or metrics.json."""
        card = PointFile.read(folder / POINT)
        config = flat(card.config)
        command = card.command or ("probe" if "probe.latents" in config else "")
        return cls(
            folder=folder,
            state="failed" if card.error else "finished" if card.finished else "unfinished",
            error=card.error,
            config=config,
            swept={key.lstrip("+"): value for key, value in card.swept.items()},
            choices=card.choices,
            returns=RETURNS.get(command) or config.get("returns") or RETURNED,
            values={RETURNED: card.value} | {name: metric(folder, name) for name in columns},
        )

    def given(self, key: str) -> str:
        """What this point has of a key that the sweep varies: a group by the name of its choice."""
        value = self.swept.get(key, self.choices.get(key, self.config.get(key)))
        return "null" if value is None else str(value)


def main(options: SummarizeOptions, run: Path) -> None:
    folders = sorted(path.parent for path in existing_folder(run, "run").glob(f"*/{POINT}"))
    if not folders:
        raise ValueError(f"{run} holds no points of a sweep: make them by `ldm COMMAND -m run={options.run} KEY=A,B`")
    points = [Point.read(folder, options.columns) for folder in folders]
    keys, names = varied(points), [RETURNED, *options.columns]
    ranking, said = ranked_by(points, names)
    largest_first = (options.best == "max") if options.best else larger_is_better(points, ranking)
    points.sort(key=lambda point: place(point, keys, ranking, largest_first))
    rows = [
        {"state": point.state}
        | {key: point.given(key) for key in keys}
        | {name: point.values[name] for name in names}
        | {"folder": point.folder.name}
        for point in points
    ]
    write_table(run / "summary.csv", rows)
    draw(run / "summary.png", points, keys, names)
    print(as_text(rows))
    if ranking is not None:
        said += [f"in the order of {named(points, ranking)}, the {'largest' if largest_first else 'smallest'} first"]
    said += [f"no point has a {name}" for name in names[1:] if all(point.values[name] is None for point in points)]
    said += [f"{point.folder} failed: {point.error}" for point in points if point.error]
    print("\n".join([*said, f"{run}: summary.csv, summary.png"]))


def varied(points: list[Point]) -> list[str]:
    """The columns that tell the points apart: the keys that a sweep varied, and others in which points differ.

    A group's choice stands for all the group's keys, and an experiment's for all keys.
    """
    swept = list(dict.fromkeys(key for point in points for key in point.swept))
    if "experiment" in swept:
        return swept
    within = tuple(f"{key}." for key in swept)
    every = dict.fromkeys(key for point in points for key in point.config)
    others = [key for key in every if key not in swept and not key.startswith(within)]
    first = points[0].config
    return swept + [key for key in others if any(point.config.get(key) != first.get(key) for point in points)]


def ranked_by(points: list[Point], names: list[str]) -> tuple[str | None, list[str]]:
    """The first metric that can be compared over all points, if there is one, and what to say of those that cannot be.

    A loss is what the point's own objective makes of the network's errors: of two objectives, the smaller loss is not
    the better model.
    """
    unlike, said = sorted(unlike_losses(points)), list[str]()
    for name in names:
        if not (unlike and is_loss(named(points, name))):
            return name, said
        said.append(
            f"{named(points, name)} is another function for points that differ in {', '.join(unlike)}, so they are not "
            "ranked by it: score each point's samples (ldm evaluate run=RUN/POINT/metrics), and pass "
            "columns=[frechet_distance]"
        )
    return None, said


def unlike_losses(points: list[Point]) -> set[str]:
    """The parts of the config that define a loss, or what it is measured on, in which the points differ."""
    keys = {key for point in points for key in point.config if key.partition(".")[0] in OF_LOSSES}
    differ = {key for key in keys if any(point.config.get(key) != points[0].config.get(key) for point in points)}
    return {key.partition(".")[0] for key in differ if not key.startswith(OF_SAMPLING)}


def is_loss(name: str) -> bool:
    return name.rpartition("/")[2] in LOSSES


def larger_is_better(points: list[Point], name: str | None) -> bool:
    return name is not None and named(points, name).rpartition("/")[2].endswith(LARGER_IS_BETTER)


def named(points: list[Point], name: str) -> str:
    """A column's metric: what the points return by its own name."""
    return points[0].returns if name == RETURNED else name


def place(point: Point, keys: list[str], ranking: str | None, largest_first: bool) -> tuple[Any, ...]:
    """Sorts points: by the metric, those without one last, and by what they were given."""
    value = None if ranking is None else point.values[ranking]
    known = value is not None and math.isfinite(value)
    ranked = ((-1 if largest_first else 1) * value if known and value is not None else 0.0,)
    return (
        ranking is not None and not known,
        *ranked,
        *(_natural(point.given(key)) for key in keys),
        point.folder.name,
    )


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers by their size, before texts."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (0, number, "") if math.isfinite(number) else (1, 0.0, text)


def metric(point: Path, name: str) -> float | None:
    """A metric of a point: the last in metrics.csv, or from metrics.json (its own, or its probe's); None without."""
    from ldm.training.curves import last_value  # with it comes Lightning: only where a metric is asked for

    last = last_value(point, name)
    if last is not None:
        return last
    for path in (point / "metrics.json", point / "metrics" / "metrics.json"):
        if path.exists():
            value = MetricsFile.read(path).value(name)
            if value is not None:
                return value
    return None


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table in columns, for the terminal."""
    table = [list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(rows[0]))]
    return "\n".join("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in table)


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def draw(path: Path, points: list[Point], keys: list[str], names: list[str]) -> None:
    """A row a point, a panel a metric: a dot and a number for each value, a word where there is none."""
    names = [name for name in names if any(point.values[name] is not None for point in points)] or names[:1]
    labels = [", ".join(f"{key}={point.given(key)}" for key in keys) or point.folder.name for point in points]
    characters, unlike = max(map(len, labels)), bool(unlike_losses(points))
    figure = Figure(figsize=(0.8 + 0.085 * characters + 3.4 * len(names), 1.1 + 0.34 * len(points)), dpi=100)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        alike = not (unlike and is_loss(named(points, name)))
        _draw_metric(panel, [point.values[name] for point in points], [point.state for point in points], alike)
        panel.set_title(
            named(points, name) + ("" if alike else "\n(not comparable)"), fontsize="medium", parse_math=False
        )
    panels[0].set_yticks(range(len(points)), labels, fontsize="small", parse_math=False)
    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # letters that the font lacks become boxes
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15)


def _draw_metric(panel: Any, values: list[float | None], states: list[str], alike: bool) -> None:
    known = [(i, value) for i, value in enumerate(values) if value is not None and math.isfinite(value)]
    low, high = min((v for _, v in known), default=0.0), max((v for _, v in known), default=1.0)
    margin = 0.12 * (high - low) or 0.12 * abs(high) or 1.0
    panel.set_xlim(low - margin, high + 4 * margin)  # room for the numbers
    panel.set_ylim(len(values) - 0.5, -0.5)
    panel.hlines(range(len(values)), *panel.get_xlim(), color="0.92", linewidth=1, zorder=0)
    panel.plot([v for _, v in known], [i for i, _ in known], "o", color="tab:blue" if alike else "0.6", markersize=5)
    for i, value in known:
        panel.annotate(f"{value:.5g}", (value, i), (7, 0), textcoords="offset points", va="center", fontsize="small")
    for i in {*range(len(values))} - {i for i, _ in known}:
        missing = states[i] if values[i] is None else f"{values[i]}"
        panel.text(low, i, missing, va="center", fontsize="small", color="0.5", style="italic")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize="small", colors="0.4")
    panel.locator_params(axis="x", nbins=4)
