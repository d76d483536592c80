"""Timing of several tasks that take turns, fairly, and lines of a table of ratios: what the benchmarks share."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from torch import nn

Task = Callable[[], Any]


def wall_seconds(task: Task) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def interleaved(
    tasks: dict[str, Task], rounds: int, timed: Callable[[Task], float] = wall_seconds
) -> dict[str, list[float]]:
    """Seconds of each task in each round but a first one, all tasks taking turns, and turns to be first."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for i in range(rounds + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(tasks[name]))
    return {name: taken[1:] for name, taken in seconds.items()}


def middle(seconds: list[float]) -> float:
    return statistics.median(seconds)


def row(what: str, ours: list[float], theirs: list[float], unit: str = "s") -> None:
    """A line of the table: both medians, the median of the ratios taken round by round, their spread."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(
        f"| {what} | {middle(ours):.3f} {unit} | {middle(theirs):.3f} {unit} "
        f"| **{middle(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) |",
        flush=True,
    )


def better(times: dict[str, list[float]], names: list[str]) -> list[float]:
    """Of several variants, the one with the smallest median."""
    return min((times[name] for name in names), key=middle)


def wake(net: nn.Module) -> None:
    """Weights that start at zero would make gradients zero, and zeros are multiplied at less power: faster."""
    for weight in net.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
