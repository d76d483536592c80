"""A sweep's points as a table and a picture: runs/RUN/summary.csv, summary.png."""

import csv
import io
from pathlib import Path
from typing import Any, Literal

from ldm.commands.options import Options
from ldm.commands.sweep_points import POINT
from ldm.runtime.files import atomic_write, existing_folder, flat, read_json


class SummarizeOptions(Options):
    """conf/summarize.yaml, which says what each key means."""

    columns: list[str]
    best: Literal["min", "max"]


def main(options: SummarizeOptions, run: Path) -> None:
    points = sorted(path.parent for path in existing_folder(run, "run").glob(f"*/{POINT}"))
    if not points:
        raise ValueError(f"{run} holds no points of a sweep: make them by `ldm COMMAND -m run={options.run} KEY=A,B`")
    cards = [read_json(point / POINT) for point in points]
    rows = []
    given = differing([flat(card["config"]) for card in cards])
    for point, card, choices in zip(points, cards, given, strict=True):
        state = "failed" if card["error"] else "finished" if card["finished"] else "unfinished"
        found = {name: metric(point, name) for name in options.columns}
        rows.append({"state": state, **choices, "returned": card["value"], **found, "folder": point.name})
    worst = float("inf") if options.best == "min" else float("-inf")
    rows.sort(key=lambda row: worst if row["returned"] is None else row["returned"], reverse=options.best == "max")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(run / "summary.csv") as file:
        file.write(text.getvalue().encode())
    labels = [", ".join(f"{key.rpartition('.')[2]}={row[key]}" for key in given[0]) for row in rows]
    draw(run / "summary.png", rows, labels, ["returned", *options.columns])
    print(text.getvalue().rstrip())
    for point, card in zip(points, cards, strict=True):
        if card["error"]:
            print(f"{point} failed: {card['error']}")
    print(f"{run}: summary.csv, summary.png")


def differing(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each config, the keys in which not all are equal."""
    keys = {key: None for config in configs for key in config}
    chosen = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    return [{key: config.get(key) for key in chosen} for config in configs]


def metric(point: Path, name: str) -> float | None:
    """A metric of a point: the last in metrics.csv, or from metrics.json (its own, or its probe's); None without."""
    from ldm.training.curves import last_value

    last = last_value(point, name)
    if last is not None:
        return last
    for path in (point / "metrics.json", point / "metrics" / "metrics.json"):
        if path.exists():
            value: Any = read_json(path)
            for part in name.split("/"):
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, dict):
                value = value.get("value")
            if value is not None:
                return float(value)
    return None


def draw(path: Path, rows: list[dict[str, Any]], labels: list[str], names: list[str]) -> None:
    """A bar a point, a panel a metric."""
    from matplotlib.figure import Figure

    names = [name for name in names if any(row[name] is not None for row in rows)] or names[:1]
    figure = Figure(figsize=(4 + 3.2 * len(names), 1.2 + 0.32 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        panel.barh(range(len(rows)), [row[name] or 0 for row in rows])
        panel.set_title(name)
        panel.margins(x=0.15)
        for i, row in enumerate(rows):
            panel.text(row[name] or 0, i, " -" if row[name] is None else f" {row[name]:.4g}", va="center")
    panels[0].set_yticks(range(len(rows)), labels, fontsize="small")
    panels[0].invert_yaxis()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90)
