"""What `ldm evaluate` may be asked."""

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from ldm.commands.options import Free, Group, LoggedOptions, ResultOptions, Text, Workers
from ldm.runtime.arguments import Node, node_with
from ldm.runtime.ranges import Count, Natural


class Neighbourhoods(Group):
    """k of the neighbourhoods of two pairs of scores."""

    precision_recall: Count
    density_coverage: Count


class EvaluateOptions(ResultOptions, LoggedOptions):
    """conf/evaluate.yaml, which says what each key means."""

    data: Node
    samples: Text | None
    reference: Text | None
    statistics: Text | None
    features: Text | None
    classifier: Text | None
    keep: Count
    neighbours: Neighbourhoods
    inception_splits: Literal["shuffled", "adm"]
    memorisation: Natural
    likelihood: Natural
    reconstruction: bool
    lpips: bool | str | None
    scores: dict[str, Annotated[dict[str, Any], node_with("samples", "held_out")]]
    tile: Count | None
    autoencoder: Text | None
    batch_size: Annotated[Count, Free()]
    num_workers: Annotated[Workers, Free()]
    device: Annotated[str, Free()]

    @property
    def of_samples(self) -> list[str]:
        """The keys that ask for something of samples."""
        keys = ("classifier", "reference", "memorisation", "likelihood", "scores")
        return [key for key in keys if getattr(self, key)]

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.reference is not None and self.features is None:
            raise ValueError("features=null compares with no reference: pass reference=null, or features=")
        if self.samples is None and (self.of_samples or not self.reconstruction):
            what = f"{self.of_samples[0]} needs samples" if self.of_samples else "pass reconstruction=true"
            raise ValueError(f"samples=null scores an autoencoder alone: {what}")
        if self.memorisation and self.features is None:
            raise ValueError("memorisation is measured in feature space: pass features=")
        if self.keep <= (most := max(self.neighbours.precision_recall, self.neighbours.density_coverage)):
            raise ValueError(f"keep={self.keep} must be more than neighbours={most}, which are looked for among them")
        return self
