"""What the page asks for, and whom it asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ldm.condition import Condition
from ldm.generate.generator import Generator

TRAINED = "trained"  # the choice that leaves it to the model's objective


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is set in the page, as it stands there: `Studio.plan` holds it to what belongs there.

    classes:   by name; none is all of them, in turn
    prompt:    of a model of text; "" says nothing
    low, high: the interval of times in which guidance acts
    weak:      a weaker model that guides in place of the unlabelled branch; "" is none
    frames:    of an interpolation beside the samples; 0 is none
    """

    classes: Sequence[str]
    seed: int
    num: int
    guidance: float
    sampler: str
    steps: int
    low: float
    high: float
    rescale: float
    grid: str
    path: str
    prompt: str = ""
    weak: str = ""
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What there is to set, and where it starts.

    samplers: the steps that each starts with
    guided:   whether the model has learned to do without labels
    labels:   whether it was told labels
    text:     whether it was told text
    between:  whether there is a way from one sample to another
    """

    class_names: Sequence[str]
    samplers: Mapping[str, int]
    grids: Sequence[str]
    paths: Sequence[str]
    seed: int
    guidance: float
    guided: bool
    labels: bool = True
    text: bool = False
    between: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Samples that can be drawn: how, what all are told, [N], by which of the names each is shown, how many at once."""

    generator: Generator
    told: Condition
    rows: list[int]
    names: list[str]
    batch_size: int


class Studio(Protocol):
    """Who knows the model, and the command line that repeats what the page does. `of` names another model; "" is the
    studio's own."""

    choices: Choices

    def plan(self, settings: Settings, of: str = "") -> Plan:
        """ValueError, in one line, for settings that do not fit the model or each other."""

    def line(self, settings: Settings, of: str = "", mark: str = "") -> str:
        """The command that draws the same samples; `mark` tells its run folder from that of a line beside it."""
