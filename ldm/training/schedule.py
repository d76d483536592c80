"""Learning rates as functions of progress, and how a run goes on whose end was moved."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Interval

from ldm.runtime.ranges import Natural

Resume = Literal["anew", "tail"] | Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Factor on the learning rate: a linear warm-up, then constant, or a cosine to 0 (Loshchilov & Hutter 2017, eq. 5).

        factor(n) = peak (1 + cos(pi (n - first) / (steps - first))) / 2        first = max(warmup, start)

    steps   batches in all
    warmup  batches of the warm-up
    decay   constant, or cosine
    resume  how a cosine goes on when a run gets other steps than it had: anew = as if they had been its steps from the
            beginning, so that the rate jumps; tail = falls from the rate that it has; a number = falls from this share
            of the full rate
    start   batches after which the present cosine began, and
    peak    the factor that it began with; both set by `going_on`
    """

    steps: int
    warmup: Natural = 0
    decay: Literal["constant", "cosine"] = "constant"
    resume: Resume = "anew"
    start: int = 0
    peak: float = 1.0

    def __post_init__(self) -> None:
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"schedule.decay must be constant or cosine, not {self.decay!r}")

    def __call__(self, batches: int) -> float:
        """The factor in the batch after so many."""
        if batches < self.warmup:
            return (batches + 1) / (self.warmup + 1)
        if self.decay == "constant":
            return 1.0
        first = max(self.warmup, self.start)
        done = (batches - first) / max(1, self.steps - first)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, for `going_on`."""
        return {key: asdict(self)[key] for key in ("steps", "start", "peak")}

    def going_on(self, before: "Schedule", batches: int) -> "Schedule":
        """This schedule for a run that has trained so many batches by the one before."""
        if self.steps == before.steps:
            return replace(self, start=before.start, peak=before.peak)
        if self.decay == "constant" or self.resume == "anew" or batches <= self.warmup:
            return self
        peak = before(batches - 1) if self.resume == "tail" else self.resume
        return replace(self, start=batches, peak=peak)
