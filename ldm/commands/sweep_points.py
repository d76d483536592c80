"""A sweep's points: each one's folder, named by the keys that the sweep varies, and the card: how it went."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from ldm.runtime.run_copies import bring_run
from ldm.runtime.schema import JsonFile
from ldm.runtime.stores import Store, is_address

POINT = "point.json"  # the card's file
LONGEST = 200  # bytes of a folder's name: file systems take 255, and allow for names beside it


class SweptKeys(Callback):
    """Tells the points which keys the sweep varies: each sees one value of each, as if the others were given too.

    Args:
        varied: those keys; Hydra's config holds them for the points of a sweep.
    """

    def __init__(self, varied: list[str]) -> None:
        self.varied = varied

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        keys = swept_keys(config.hydra)
        with open_dict(config):
            config.hydra.callbacks.swept.varied = keys  # for the launcher, which names its jobs
            listed = ",".join(f"'{key}'" for key in keys)
            config.hydra.overrides.hydra.append(f"hydra.callbacks.swept.varied=[{listed}]")  # for the points


def swept_keys(hydra: DictConfig) -> list[str]:
    """The keys that a sweep varies: those with several values or an interval, of its file and of the command line."""
    words = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*words, *_words(hydra)])
    varied = {override.get_key_element(): override.is_sweep_override() for override in parsed}  # the later one counts
    return [key for key, varies in varied.items() if varies]


def point_name(*, _root_: DictConfig) -> str:
    """The name of a point's folder: `objective=flow,seed=0`, of the keys that the sweep varies.

    A folder of this point that goes by the name of all its overrides, as they were named before, keeps it.
    """
    hydra = _root_.hydra
    name = short_name(",".join(sorted(f"{key}={value}" for key, value in swept_values(hydra).items())))
    if not name:
        name = short_name(hydra.job.override_dirname) or "point"
    sweep, before = Path(hydra.sweep.dir), name_of_all_overrides(hydra)
    known = len(before.encode()) < 256 and (sweep / before / POINT).exists()  # no name is longer
    return before if known and not (sweep / name / POINT).exists() else name


def name_of_all_overrides(hydra: DictConfig) -> str:
    """How a point's folder was named until version 0.2."""
    name: str = hydra.job.override_dirname.replace("/", "%2F")
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def short_name(text: str) -> str:
    """A text as the name of one file: no slashes, at most LONGEST bytes; of two texts, two names."""
    name = text.replace("%", "%25").replace("/", "%2F")
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name.encode()[: LONGEST - 17].decode(errors='ignore')}-{digest}"


def job_name(*, _root_: DictConfig) -> str:
    """What a launcher calls the jobs of a sweep: the run and the keys that it varies, `rates-optimizer.lr`."""
    return "-".join([str(_root_.run), *_root_.hydra.callbacks.swept.varied])


def swept_values(hydra: Any) -> dict[str, str]:
    """What the sweep gives this point, without quotes: {"objective": "flow"}."""
    parsed = OverridesParser.create().parse_overrides(_words(hydra))
    given = {override.get_key_element(): override for override in parsed if not override.is_delete()}
    values = {key: given[key].value() for key in hydra.callbacks.swept.varied if key in given and key != "run"}
    return {key: value if isinstance(value, str) else _text(given[key]) for key, value in values.items()}


def _text(override: Override) -> str:
    """A value as the command line has it."""
    return str(override.input_line).partition("=")[2]


def _words(hydra: Any) -> list[str]:
    words: list[str] = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    return words


# at import, because a launcher's job resolves hydra.sweep.subdir before it calls any function of ours
OmegaConf.register_new_resolver("ldm.point", point_name, replace=True)
OmegaConf.register_new_resolver("ldm.job", job_name, replace=True)


class PointFile(JsonFile):
    """point.json: a point's config, whether it is finished, what it returned, why it failed.

    command, swept, choices, log: see `about_point`; a card from before version 0.2 lacks them
    """

    fix: ClassVar[str] = "remove it, and run the same sweep again, which runs this point again"

    config: dict[str, Any] = Field(default_factory=dict)
    finished: bool = False
    value: float | None = None
    error: str | None = None
    command: str = ""
    swept: dict[str, str] = Field(default_factory=dict)
    choices: dict[str, str | None] = Field(default_factory=dict)
    log: str | None = None


class PointCard:
    """Keeps the card of one point, RUN/POINT/point.json.

    Args:
        folder: the point's run folder.
        writes: whether this process writes the card; of several ranks, rank 0 alone does.
        copy:   of the folder, in an object store, from which the card is fetched first, and where each one goes: what
                else keeps that copy ends before the point does. None: there is none.
    """

    def __init__(self, folder: Path, *, writes: bool, copy: Store | None = None) -> None:
        self.path, self.writes, self.copy = folder / POINT, writes, copy
        self.content = PointFile(config={}, finished=False, value=None, error=None)

    def start(self, config: dict[str, Any], about: dict[str, Any]) -> bool:
        """Note that the point starts with this config; False if it is finished already, with the same one.

        Args:
            config: resolved.
            about: what else `ldm summarize` wants to know: see `about_point`.
        """
        config = {key: value for key, value in config.items() if key != "logger"}
        if self.copy is not None and self.writes:
            bring_run(self.copy, self.path.parent, lambda name: name == POINT)
        before = PointFile.read(self.path) if self.path.exists() else self.content
        if before.finished and before.config == json.loads(json.dumps(config)):
            self.content = before
            return False
        self._write(config=config, **about)
        return True

    @property
    def value(self) -> float | None:
        """What the point returned, which is what a sweep optimises; None before it is finished."""
        return self.content.value

    def finish(self, value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"{self.path.parent} returns {value}, which no sweep can rank: its metrics.csv says since when"
            )
        self._write(finished=True, value=value)

    def fail(self, error: str) -> None:
        self._write(error=error)

    def _write(self, **news: Any) -> None:
        self.content = PointFile(**self.content.model_dump(exclude_unset=True) | news)
        if self.writes:
            self.content.write(self.path)
            if self.copy is not None:
                self.copy.put(self.path, POINT)


def copy_of_point(address: Any, folder: Path) -> Store | None:
    """The place of a point's copy by the sweep's store=; None where that is no address."""
    return Store(f"{address}/{folder.relative_to('runs').as_posix()}") if is_address(address) else None


def about_point(command: str, hydra: Any) -> dict[str, Any]:
    """What a card holds beside the config: the command, what the sweep varies, groups' choices, a launcher's log."""
    choices = {str(group): choice for group, choice in hydra.runtime.choices.items() if "/" not in str(group)}
    log = f".submitit/{hydra.job.id}" if "submitit" in str(hydra.launcher.get("_target_")) else None
    return {"command": command, "swept": swept_values(hydra), "choices": choices, "log": log}
