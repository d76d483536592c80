"""Timing of several tasks that take turns, and lines of a table of ratios: what the benchmarks share."""

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
    """Seconds of each task in each of so many rounds, after a first round that does not count.

    In a round each task runs once; another one begins in the next round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for i in range(rounds + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(tasks[name]))
    return {name: taken[1:] for name, taken in seconds.items()}


def middle(seconds: list[float]) -> float:
    return statistics.median(seconds)


def row(what: str, ldm: list[float], peer: list[float]) -> None:
    """Print a line of the table: both medians of seconds, and of the rounds' ratios the median and the spread."""
    ratios = [b / a for a, b in zip(ldm, peer, strict=True)]
    print(
        f"| {what} | {middle(ldm):.3f} s | {middle(peer):.3f} s "
        f"| **{middle(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) |",
        flush=True,
    )


def better(times: dict[str, list[float]], names: list[str]) -> list[float]:
    """The seconds of the one with the smallest median of the named tasks."""
    return min((times[name] for name in names), key=middle)


def wake(net: nn.Module) -> None:
    """Draw the weights that start at zero: they would make gradients zero, and zeros are multiplied faster."""
    for weight in net.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
