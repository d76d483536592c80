"""Typed options: what a command's config may be, checked once, before anything is computed."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from annotated_types import Interval
from hydra.utils import instantiate
from omegaconf import DictConfig
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from ldm.commands.run_folder import plain, read_config, write_config
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.sampling import Sampling
from ldm.evaluation.result_files import LikelihoodFile
from ldm.runtime.arguments import Node, arguments_of, check_node
from ldm.runtime.files import CONFIG, flat
from ldm.runtime.ranges import Count, Natural, Steps
from ldm.runtime.stores import Store, is_address, local_copy
from ldm.runtime.targets import packages
from ldm.runtime.wrong import ArgumentError, explain, read, shown

Loggers = dict[str, Node]
# a name or a path, which may be a number as well
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, bool | int | float) else value)]


class Group(BaseModel):
    """Some keys of a config, frozen; a key that it does not have is an error."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """The keys with these values.

        Raises:
            ValueError: in one line, with the key that is wrong, its value and what belongs there.
        """
        try:
            return read(cls.model_validate_json, given)
        except ValidationError as error:
            raise ValueError(explain(error, given)) from None


G = TypeVar("G", bound=Group)


def parsed(schema: type[G], config: DictConfig) -> tuple[G, dict[str, Any]]:
    """A composed config's options, and the config in plain dicts and lists; ValueError as `Group.of` has it."""
    given = plain(config)
    return schema.of(given), given


class Free:
    """Marks an option that the same run may change when it goes on: how far, where and how it is watched, not what it
    makes. Of a node, those of its keys that are named, or all."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys


def below_runs(name: str) -> str:
    """The name of a folder below runs/, which it must not leave."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise ArgumentError("", f"={name!r} must name a folder below runs/, as in run=first")
    if any(len(part.encode()) > 255 for part in parts):
        raise ArgumentError("", f"={name[:40]}... is longer than the name of a folder can be")
    return name


def _object_store(address: str | None) -> str | None:
    if address is not None and not is_address(address):
        raise ArgumentError("", f"={address} must name an object store's folder, as s3://bucket/runs")
    return address


def fetched(key: str, value: Any) -> Any:
    """A key's value; of a place in an object store, the copy of it here."""
    return str(local_copy(value, key)) if key != "store" and is_address(value) else value


class Options(Group):
    """What all commands share.

    run:    the run folder's name below runs/
    store:  an object store's folder, where runs/RUN has a copy at STORE/RUN
    seed:   of all that is drawn
    trust:  packages, beside ldm, whose code a model may be built from
    """

    run: Annotated[Text, AfterValidator(below_runs), Free()]
    store: Annotated[Text | None, AfterValidator(_object_store), Free()]
    seed: Natural
    trust: Annotated[list[str] | str, AfterValidator(packages), Free()]
    _plain: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def parse(cls, config: DictConfig) -> Self:
        """The options of a composed config; ValueError as `of` has it."""
        given = plain(config)
        options = cls.of(given)  # before anything is fetched
        if any(is_address(value) for key, value in given.items() if key != "store"):
            options = cls.of({key: fetched(key, value) for key, value in given.items()})
        options._plain.update(given)
        return options

    @classmethod
    def free_keys(cls) -> frozenset[str]:
        """The keys that are marked as `Free`."""
        marked = (
            (name, mark) for name, at in cls.model_fields.items() for mark in at.metadata if isinstance(mark, Free)
        )
        return frozenset(key for name, mark in marked for key in ([f"{name}.{k}" for k in mark.keys] or [name]))

    def slot(self, rank: int) -> str:  # noqa: ARG002
        """Which part of the run folder this process has to itself; "" = all of it, as the first rank."""
        return ""

    def is_remote(self, *keys: str) -> bool:
        """Whether one of these keys names a place in an object store, of which this command has a copy."""
        return any(is_address(self._plain.get(key)) for key in keys)

    def copy_of(self, run: Path) -> Store | None:
        """The place of a run's copy in an object store; None where none is kept.

        Raises:
            ValueError: for a folder that does not lie below runs/, as of a command that leaves none.
        """
        if self.store is None:
            return None
        if Path("runs") not in run.parents:
            raise ValueError(f"store={self.store} keeps copies of folders below runs/, and this command writes none")
        return Store(f"{self.store}/{run.relative_to('runs').as_posix()}")

    def named(self, key: str) -> str:
        """A key's value as it was given: of a place in an object store, the place."""
        return str(self._plain.get(key, getattr(self, key)))

    @staticmethod
    def brings(name: str) -> bool:  # noqa: ARG004
        """Whether a file of the run's copy is needed here, where it is lacking."""
        return True

    def plain(self) -> dict[str, Any]:
        """The config as it was composed, in plain dicts and lists: what cards, stamps and config.yaml record."""
        return self._plain

    def begin(self, run: Path) -> None:
        """Write the config into the run folder: once all checks have passed, so that a refusal changes nothing."""
        write_config(self.plain(), run)


class LoggedOptions(Options):
    """Of a command that loggers are told of, beside its files."""

    logger: Annotated[Loggers, Free()]


class ResultOptions(Options):
    """Of a command whose results replace those of an earlier call.

    overwrite:  whether results of other settings in the run folder may go
    """

    overwrite: Annotated[bool, Free()]

    def begin(self, run: Path) -> None:
        """Likewise, unless the folder has results of other settings: see `keep_others`."""
        self.keep_others(run)
        super().begin(run)

    def keep_others(self, run: Path) -> None:
        """ValueError if the folder has results of other settings, and overwrite=true does not say that they may go."""
        if (run / CONFIG).exists() and not self.overwrite:
            before, now, free = flat(read_config(run)), flat(self.plain()), self.free_keys()
            changed = [k for k in now if k in before and before[k] != now[k] and k.partition(".")[0] not in free]
            if changed:
                named = ", ".join(f"{key}={shown(before[key])} (now {shown(now[key])})" for key in changed[:3])
                raise ValueError(f"{run} holds results of {named}: choose another run=, or pass overwrite=true")


def build(node: dict[str, Any] | None) -> Any:
    """What a node names, constructed; lists and dicts come out plain. None of an empty node."""
    return instantiate(node, _convert_="all") if node else None


def _served(workers: int) -> int:
    cores = os.cpu_count() or 1
    if workers > 16 * cores:
        raise ArgumentError("", f"={workers} is more than {16 * cores}, 16 for each core of this machine")
    return workers


Workers = Annotated[Natural, AfterValidator(_served)]  # processes or threads that read data
Weights = Literal["ema", "raw"] | Annotated[float, Interval(gt=0, lt=1)]  # or the width of an average


class SamplerOptions(Group):
    """conf/sampler: a sampler and its steps; null where the model's objective says."""

    function: Node | None
    steps: Steps | None


def _measured(node: dict[str, Any]) -> dict[str, Any]:
    """A grid's node, the losses of a run of `ldm likelihood` in place of its name."""
    named = node.get("losses")
    if not isinstance(named, str):
        return node
    file = Path(named) / "likelihood.json" if Path(named).is_dir() else Path(named)
    if not file.is_file():
        raise ArgumentError(".losses", f"={named} is no run of ldm likelihood: run that first, and name its folder")
    losses = (LikelihoodFile.read(file).model_extra or {}).get("by_hidden")
    if losses is None:
        raise ArgumentError(".losses", f"={named} is not of a model of codes (objective=ardm)")
    return node | {"losses": losses}


GridChoice = Annotated[dict[str, Any], AfterValidator(_measured), AfterValidator(lambda n: check_node(n) if n else n)]


StudentNode = Annotated[
    dict[str, Any] | None,
    AfterValidator(lambda node: check_node(node, ("objective", "teacher", "null")) if node else None),
]


class ObjectiveOptions(Group):
    """conf/objective: the arguments of `Objective`, the sampling that fits it, and the student whose target has no
    closed form, if any. What is null is the teacher's. codes: cached, of `Autoregressive`, where the latents say how
    many there are."""

    codes: Literal["cached"] | None = None
    path: Node | None = None
    parameterization: Parameterization | None = None
    weighting: Node | None = None
    time_sampler: Node | None = None
    coupling: Node | None = None
    unit_input: bool | None = False
    average: bool = False
    scales: Count = 1
    student: StudentNode = None
    sampling: Annotated[dict[str, Any], arguments_of(Sampling)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        given = self.model_fields_set - {"codes", "sampling"}
        if self.codes is not None and (other := given - {"time_sampler"}):
            raise ValueError(f"codes={self.codes} has no {min(other)}: leave it out")
        lacking = [key for key in ("path", "parameterization", "weighting", "time_sampler") if key not in given]
        if self.codes is None and lacking:
            raise ValueError(f"{lacking[0]} is missing: null is the teacher's")
        return self

    def card(self, teachers: dict[str, Any] | None = None, codes: int | None = None) -> dict[str, Any]:
        """The objective's own arguments, as a checkpoint's card has them; codes: of the latents.

        Raises:
            ValueError: if something is left to a teacher, and there is none.
        """
        if self.codes is not None:
            return {"codes": codes, "time_sampler": self.time_sampler}
        own = self.model_dump(exclude={"codes", "sampling", "student"}, exclude_unset=True)
        open_keys = [key for key, value in own.items() if value is None and key != "coupling"]
        if open_keys and teachers is None:
            raise ValueError(f"objective.{open_keys[0]} is null, which is the teacher's: pass teacher=RUN")
        inherited = {key: teachers[key] for key in open_keys if teachers and key in teachers}
        return {key: value for key, value in own.items() if value is not None} | inherited
