"""The rows that jobs/bench/bench_gpu.py prints and keeps, and its device and time."""

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
        device:  where the networks run.
        out:     the folder for rows and profiles.
        minutes: after which nothing more is begun.
        rounds:  turns that each network takes.
        repeats: calls of its task in a turn.
        warmups: calls of its task before the first turn.
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
        """Until the end, without the time that is kept for a later section."""
        return 60 * self.minutes - (time.perf_counter() - self.start) - self.kept

    def say(self, text: str) -> None:
        print(f"{text} [{time.perf_counter() - self.start:.0f} s]", flush=True)

    def row(self, what: str, text: str, **figures: Any) -> None:
        """Print the text, and keep the figures."""
        elapsed = round(time.perf_counter() - self.start, 1)
        with open(self.out / "bench_gpu.jsonl", "a") as file:
            file.write(json.dumps({"section": self.section, "what": what, **figures, "elapsed_s": elapsed}) + "\n")
        self.say(f"{what}: {text}")

    def passes_over(self, what: str, needs_cuda: bool = False) -> bool:
        """Whether there is no time or no GPU for it; prints which."""
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
        """Seconds of a task, by the GPU's clock.

        The cache is emptied before, for both networks' memory may be more than there is; a first call allocates anew.
        """
        torch.cuda.empty_cache()
        task()
        start = self.clock.mark()
        for _ in range(self.repeats):
            task()
        return self.clock.seconds(start, self.clock.mark()) / self.repeats

    def clear(self) -> None:
        """Drop compiled graphs and cached memory."""
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def said(error: BaseException) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
