"""What is known of a run and of those that it was made from: plain data, whatever it is shown on afterwards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # of each metric, batches and values, [N] each


class Change(NamedTuple):
    """A key, or a group, that a run has otherwise than its command's defaults."""

    key: str
    value: Any
    default: Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run was made.

    Args:
        command : `train-diffusion`
        words   : overrides that make it again, as the command takes them
        line    : both, to be copied into a shell, in the folder that holds runs/
        changed : what is not as the command has it by default
        config  : all of it
    """

    command: str
    words: tuple[str, ...]
    line: str
    changed: tuple[Change, ...]
    config: dict[str, Any]


RecipeOf = Callable[[Path], Recipe]  # of a run folder; ValueError for a folder that is none


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number, as metrics.json or likelihood.json has it.

    Args:
        depends : how it was measured: two numbers may be compared where this is alike
        beside  : what its file says with it, as a standard deviation
    """

    name: str
    value: float
    depends: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)


class Picture(NamedTuple):
    """A picture that a run has left.

    kind: samples, trajectory, interpolation, reconstructions, progress (of samples), neighbours or pairs
    said: below it
    """

    kind: str
    path: Path
    said: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run has taken; None is what it did not record.

    Args:
        seconds         : of training, without validations and saves, over all starts
        images          : seen by all ranks, or made
        batches         : of training
        flops           : of training: of all images, forward and backward
        images_per_s    : the mean over training
        ranks           : processes that trained together
        evaluations     : of the network, for each image that was made
        gpu_memory_gb   : the most that was held, in GiB
        disk_bytes      : of what lies in its folder
    """

    seconds: float | None = None
    images: int | None = None
    batches: int | None = None
    flops: float | None = None
    images_per_s: float | None = None
    ranks: int | None = None
    evaluations: float | None = None
    gpu_memory_gb: float | None = None
    disk_bytes: int | None = None


class Link(NamedTuple):
    """What a run says that it was made from.

    wants: the kind of the run (a Stage's `kind`s); fingerprint: that it must have, "" where none is recorded; places:
    where it may lie, the likeliest first; named: its path as the run has it
    """

    wants: tuple[str, ...]
    fingerprint: str
    places: tuple[Path, ...]
    named: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a lineage.

    Args:
        kind         : autoencoder, latents, diffusion, samples, scores, likelihood, or other
        run          : its folder
        recipe       : how it was made; None where its config.yaml can't be read
        facts        : what its files say that it is, by name: {"parameters": 3720000}
        fingerprints : of what it made, which the runs that use it name; of a model, of averaged and raw weights
        made_from    : what it names
        scores       : of a run that scores
        pictures     : in the order of training
        curves       : metrics.csv's columns
        cost         : what it has taken
        problems     : what is missing or damaged, a sentence each
    """

    kind: str
    run: Path
    recipe: Recipe | None
    facts: dict[str, Any] = field(default_factory=dict)
    fingerprints: tuple[str, ...] = ()
    made_from: tuple[Link, ...] = ()
    scores: tuple[Score, ...] = ()
    pictures: tuple[Picture, ...] = ()
    curves: Series = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A run with those upstream and downstream of it.

    Args:
        start    : the run that was asked for
        stages   : upstream first
        problems : what is missing between them, a sentence each
    """

    start: Path
    stages: tuple[Stage, ...]
    problems: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[Stage]:
        """Its runs of a kind, in their order."""
        return [stage for stage in self.stages if stage.kind == kind]
