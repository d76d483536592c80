"""A checkpoint's card: what it says of itself, as plain data, and what may be built of them once they are looked at."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ldm.runtime import targets
from ldm.runtime.arguments import ArgumentError, check_node
from ldm.runtime.ranges import Count, Natural, Positive, Share
from ldm.runtime.schema import ClassNames, Fingerprint, Finite, Part, Whitening, problem

BUILT_BY_ANYONE = ("ldm.models", "ldm.diffusion", "ldm.conditioning")  # what a card may name without trust
DEEPEST = 40  # levels of dicts and lists: a card has about six
MOST_LATENT = 2**24  # numbers in one latent: 4 x 2,048 x 2,048
USUAL_GUIDANCE = 2.0  # where neither a card nor a call says
Node = dict[str, Any]


class Stats(Part):
    """Of raw latents, per channel; whitening: of a whitened cache, [C, C]."""

    mean: Annotated[list[Finite], Field(min_length=1)]
    std: Annotated[list[Positive], Field(min_length=1)]
    whitening: Whitening | None = None


class Scaling(Part):
    """What an imported autoencoder's latents are scaled with: a factor and a shift, or both by channel."""

    scaling_factor: Positive | None = None
    shift_factor: Finite | None = None
    latents_mean: list[Finite] | None = None
    latents_std: list[Positive] | None = None


class _Card(Part):
    """What both kinds have."""

    preprocessing: dict[str, Any] | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    batches_seen: Natural
    images_seen: Natural
    rollbacks: Natural = 0
    global_batch: Count | None = None
    schedules: dict[str, dict[str, Any]] = Field(default_factory=dict)
    imported_from: str | None = None
    aligned: str | None = None  # with whose features


class AutoencoderCard(_Card):
    """Of stage 1. autoencoder: the arguments of `Autoencoder`."""

    kind: Literal["autoencoder"]
    autoencoder: Node
    scaling: Scaling | None = None


class StudentCard(Part):
    """Of a few-step student.

    method:       what it was trained by
    teacher:      from whom it has learned, if from anybody
    guidance:     that it has learned, and needs no second network for; 1 for none
    guidance_max: where it takes the scale as a condition, the highest; guidance is the lowest
    """

    method: Node
    teacher: Fingerprint | None = None
    teacher_path: str | None = None
    guidance: Finite = 1.0
    guidance_max: Finite | None = None


class DiffusionCard(_Card):
    """Of stage 2. net and objective name what they are built of."""

    kind: Literal["diffusion"]
    net: Node
    objective: Node
    sampling: Node = Field(default_factory=dict)
    trust: list[str] = Field(default_factory=list)
    label_dropout: Share
    stats: Stats
    latent_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    class_names: ClassNames
    autoencoder: Fingerprint
    autoencoder_path: str
    condition: Node | None = None  # null: of before there was one, labels alone
    student: StudentCard | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        channels, height, width = self.latent_shape
        if channels * height * width > MOST_LATENT:
            raise ValueError(f"latent_shape {self.latent_shape} is larger than any latent")
        for name in ("mean", "std", "whitening"):
            value = getattr(self.stats, name)
            if value is not None and len(value) != channels:
                raise ValueError(f"stats.{name} is of {len(value)} channels, a latent has {channels}")
        for name, wanted in (("in_channels", channels), ("num_classes", len(self.class_names))):
            if self.net.get(name, wanted) != wanted:
                raise ValueError(f"net.{name} is {self.net[name]}, and the card is of {wanted}")
        return self


ANY_CARD: TypeAdapter[Any] = TypeAdapter(Annotated[AutoencoderCard | DiffusionCard, Field(discriminator="kind")])


def check_card(card: Any) -> None:
    """Hold a card to its schema.

    Raises:
        ValueError: in words, for the first thing that is wrong with it.
    """
    wrong = not_plain(card)
    if wrong is not None:
        raise ValueError(f"its card holds {wrong}, and should be plain data")
    try:
        ANY_CARD.validate_json(json.dumps(card))
    except ValidationError as error:
        inside = [{**each, "loc": each["loc"][1:]} for each in error.errors() if each["loc"]]
        raise ValueError(f"of its card, {problem(error, card, inside or None)}") from None


def not_plain(data: Any, depth: int = 0) -> str | None:
    """What of some data is no dict by text, list, text, finite number, true, false or null; None if all is."""
    if depth > DEEPEST:
        return f"data nested {DEEPEST} deep"
    if isinstance(data, dict):
        names = [key for key in data if type(key) is not str]
        return f"the key {names[0]!r}" if names else _first_not_plain(data.values(), depth)
    if isinstance(data, list):
        return _first_not_plain(data, depth)
    if isinstance(data, float) and not (float("-inf") < data < float("inf")):
        return f"the number {data}"
    return None if data is None or type(data) in (str, int, float, bool) else f"a {type(data).__name__}"


def _first_not_plain(values: Iterable[Any], depth: int) -> str | None:
    return next((wrong for value in values if (wrong := not_plain(value, depth + 1)) is not None), None)


def build_from_card(config: Any, trust: str | Sequence[str] = (), named_in: str = "the config") -> Any:
    """Build what part of a card describes.

    Args:
        config: the part; see `ldm.runtime.targets` for its form.
        trust: packages, beside ldm's networks and mathematics, whose code may be named.
        named_in: what names it, for the error.

    Raises:
        ValueError: if it names other code: nothing has been imported or called then.
    """
    allowed = (*BUILT_BY_ANYONE, *targets.packages(trust))
    try:
        targets.check(config, allowed)
        return targets.build(_checked(config, ""), allowed)
    except targets.UntrustedError as error:
        advice = _advice(error.foreign, "if you trust whoever wrote it, pass")
        raise ValueError(f"{named_in}: {error}: {advice}") from None
    except ValueError as error:
        raise ValueError(f"{named_in}: {error}") from None


def _checked(config: Any, place: str) -> Any:
    """A part of a card with each node as the signature of its target has it; ValueError, by its place, if it is not."""
    if isinstance(config, list):
        return [_checked(value, f"{place}[{i}]") for i, value in enumerate(config)]
    if not isinstance(config, dict):
        return config
    if targets.TARGET not in config:
        return {key: _checked(value, f"{place}.{key}" if place else str(key)) for key, value in config.items()}
    try:
        return check_node(config)
    except ArgumentError as error:
        raise ValueError(f"{place or config[targets.TARGET]}{error}") from None


def check_trust(config: Any, trust: str | Sequence[str]) -> None:
    """Refuse, before training, to write a card whose parts nobody could load without further trust.

    Raises:
        ValueError: if `config` names code outside ldm's networks and mathematics and the packages in `trust`.
    """
    foreign = targets.foreign_targets(config, (*BUILT_BY_ANYONE, *targets.packages(trust)))
    if foreign:
        advice = _advice(foreign, "which its checkpoints record, and who loads them passes again:")
        raise ValueError(f"the model would be built from {', '.join(sorted(foreign))}, {advice}")


def _advice(foreign: dict[str, str], words: str) -> str:
    packages = sorted({module.partition(".")[0] for module in foreign.values()})
    if any(package in sys.stdlib_module_names or not package.isidentifier() for package in packages):
        return "no model needs that"
    return f"{words} trust=[{','.join(packages)}] (code of that package then runs, with the arguments given there)"


def usual_guidance(card: dict[str, Any]) -> float:
    """The scale where a call says none: that of the samples in training, or else USUAL_GUIDANCE; 1 where a model can't
    be guided, or not further."""
    said = card.get("config", {}).get("guidance")
    scale = USUAL_GUIDANCE if said is None else float(said)
    lowest, highest = learned_guidance(card)
    if highest is not None:
        return min(max(scale, lowest), highest)
    return scale if can_be_guided(card) else 1.0


def can_be_guided(card: dict[str, Any]) -> bool:
    """Whether a model was trained without labels, too, and has learned no guidance of its own."""
    return card["label_dropout"] > 0 and learned_guidance(card) == (1.0, None)


def check_guidance(card: dict[str, Any], scale: float, *, weak: bool) -> None:
    """Hold a scale of guidance to what a model has learned.

    Args:
        card:  of the model
        scale: 1 is unguided
        weak:  whether a weaker model takes the place of the unlabelled branch

    Raises:
        ValueError: for a scale that it can't have.
    """
    lowest, highest = learned_guidance(card)
    if highest is not None:
        if not lowest <= scale <= highest:
            raise ValueError(
                f"guidance={scale:g} must lie in [{lowest:g}, {highest:g}], which this student has learned"
            )
    elif scale != 1 and lowest != 1:
        raise ValueError(f"guidance={scale:g} would guide again a student that has learned {lowest:g}: pass guidance=1")
    elif scale != 1 and not weak and card["label_dropout"] == 0:
        raise ValueError(
            f"guidance={scale:g} needs label_dropout > 0 in training: pass guidance=1, or weak= a weaker model"
        )


def learned_guidance(card: dict[str, Any]) -> tuple[float, float | None]:
    """The scale of guidance that a student has from its training, 1 for none; and the end of a range that it takes."""
    student = card.get("student") or {}
    return float(student.get("guidance", 1.0)), student.get("guidance_max")
