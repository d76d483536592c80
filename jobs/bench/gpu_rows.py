"""Rows of jobs/bench/bench_gpu.py as they come, and what it has of device and time."""

import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from timing import Task

from ldm.training.speed import Clock, peak_flops


class Bench:
    """The device, the minutes that are left, and the rows: printed as they come, and kept in OUT/bench_gpu.jsonl.

    Args:
        rounds: turns that each network takes; repeats: of its task in a turn; warmups: of its task before them.
    """

    def __init__(
        self, device: torch.device, out: Path, minutes: float, *, rounds: int, repeats: int, warmups: int
    ) -> None:
        self.device, self.out, self.minutes = device, out, minutes
        self.rounds, self.repeats, self.warmups = rounds, repeats, warmups
        self.cuda = device.type == "cuda"
        self.clock, self.start, self.kept = Clock(device), time.perf_counter(), 0.0
        self.peak = peak_flops(device, torch.bfloat16) if self.cuda else None
        self.section = ""
        self.recipe: dict[str, Any] = {}  # its row, once it is measured
        out.mkdir(parents=True, exist_ok=True)

    def seconds_left(self) -> float:
        """Less what is kept for a later section."""
        return 60 * self.minutes - (time.perf_counter() - self.start) - self.kept

    def say(self, text: str) -> None:
        print(f"{text} [{time.perf_counter() - self.start:.0f} s]", flush=True)

    def row(self, what: str, text: str, **found: Any) -> None:
        elapsed = round(time.perf_counter() - self.start, 1)
        with open(self.out / "bench_gpu.jsonl", "a") as file:
            file.write(json.dumps({"section": self.section, "what": what, **found, "elapsed_s": elapsed}) + "\n")
        self.say(f"{what}: {text}")

    def passes_over(self, what: str, needs_cuda: bool = False) -> bool:
        """Whether there is no time or no GPU for it, and then says so."""
        if needs_cuda and not self.cuda:
            self.say(f"{what}: passed over, it is a GPU's")
        elif self.seconds_left() <= 0:
            self.say(f"{what}: skipped, the {self.minutes:g} minutes are over or kept for what follows")
        else:
            return False
        return True

    def failed(self, what: str, error: BaseException) -> None:
        self.row(what, f"failed, {said(error)}", error=said(error))

    def timed(self, task: Task) -> float:
        """Seconds of a task, by the GPU's own marks; after a call in which it takes the memory that the other one had
        cached, for both together may be more than there is."""
        torch.cuda.empty_cache()
        task()
        start = self.clock.mark()
        for _ in range(self.repeats):
            task()
        return self.clock.seconds(start, self.clock.mark()) / self.repeats

    def clear(self) -> None:
        """No graphs, no memory of what came before."""
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def said(error: BaseException) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
