"""What the page sets, as the words of `ldm sample`: the page draws what that command would draw.

So that the line which the page shows repeats the picture, its words are composed and checked as that command's are,
and the samples planned by that command's own function.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from hydra import compose

from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion, load_diffusion, newest
from ldm.commands.config_files import CommandConfig, word
from ldm.commands.error_lines import USER_ERRORS
from ldm.commands.hydra_errors import explain
from ldm.commands.options import Weights
from ldm.commands.sample import SampleOptions, check_weak, guidance_of, planned
from ldm.commands.sample_files import wanted_of
from ldm.conditioning.text import Text
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.play.serving import Ended
from ldm.play.studio import TRAINED, Choices, Plan, Settings
from ldm.runtime.ranks import pick_device


@dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """The keys of `ldm sample` that the page does not set, as conf/playground.yaml says."""

    run: str
    model: str
    autoencoder: str | None
    weights: Weights
    trust: list[str]
    batch_size: int
    device: str

    def words(self, of: str, mark: str = "") -> list[str]:
        """Those of them that are not as they are without, for the model itself or, with the autoencoder that it names,
        another."""
        given: dict[str, Any] = {"run": self.run + mark, "model": of or self.model}
        given |= {"autoencoder": self.autoencoder} if self.autoencoder is not None and not of else {}
        usual = CommandConfig.of("sample", []).keys
        kept = ((key, getattr(self, key)) for key in ("weights", "trust", "batch_size", "device"))
        given |= {key: value for key, value in kept if value != usual[key]}
        return [f"{key}={word(value)}" for key, value in given.items()]


def words_of(settings: Settings) -> list[str]:
    """Settings as overrides; what is as it is without is left out, but for what one wants to see."""
    classes = [f"classes=[{','.join(map(name_word, settings.classes))}]"] if settings.classes else []
    said: dict[str, Any] = {"num": settings.num, "seed": settings.seed, "guidance": settings.guidance}
    said |= {"guidance_interval": [settings.low, settings.high]} if (settings.low, settings.high) != (0, 1) else {}
    said |= {"guidance_rescale": settings.rescale} if settings.rescale != 0 else {}
    said |= {"prompts": [settings.prompt]} if settings.prompt else {}
    said |= {"weak": settings.weak} if settings.weak else {}
    groups = {"sampler": settings.sampler, "grid": settings.grid, "path": settings.path}
    said |= {group: choice for group, choice in groups.items() if choice != TRAINED}
    said |= {"sampler.steps": settings.steps} | ({"interpolation": settings.frames} if settings.frames else {})
    return [*classes, *(f"{key}={word(value)}" for key, value in said.items())]


def name_word(name: str) -> str:
    """A class's name in a list of Hydra's: as `word` would have it, but in double quotes, within the shell's single
    ones, where it needs any; so does 7, which without would be an index."""
    if word(name) == name:
        return name
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + match[2].replace('"', '\\"'), name)
    return f'"{escaped}"'


def reconstruct_line(given: Mapping[str, Any], picture: str) -> str:
    """The command that reconstructs a picture as the page does. picture: its path, as far as it is known."""
    words = {**given, "images": picture or "PICTURE"}
    return " ".join(["ldm reconstruct", *(shlex.quote(f"{key}={word(value)}") for key, value in words.items())])


@dataclass(frozen=True)
class Stages:
    """Both stages of a model, with what their checkpoints say, and the checkpoint that was the newest at that time."""

    loaded: LoadedDiffusion
    autoencoder: LoadedAutoencoder
    model: LatentDiffusionModel
    newest: Path | None


class CommandStudio:
    """A studio (see `ldm.play.studio`) that does what `ldm sample` does.

    Args:
        keys: which model, and how it is run.
        seed: that the page starts with.
        ended: what is being drawn by then is given up.
    """

    def __init__(self, keys: ModelKeys, seed: int, ended: Ended) -> None:
        self.keys, self.ended, self.lock = keys, ended, Lock()
        self.own = self._load(keys.model, keys.autoencoder)
        self.others: dict[str, Stages] = {}  # at most one, the last
        self.weaker: tuple[str, Path | None, LoadedDiffusion] | None = None  # the last, by its path and checkpoint
        card, config = self.own.loaded.card, CommandConfig.of("sample", [])
        guided = card["label_dropout"] > 0
        offered = {group: self._offered(group, config.choices(group)) for group in ("sampler", "grid", "path")}
        self.choices = Choices(
            class_names=card["class_names"],
            samplers={name: self._steps(name) for name in offered["sampler"]},
            grids=offered["grid"],
            paths=offered["path"],
            seed=seed,
            guidance=self.own.model.scale,
            guided=guided,
            labels=self.own.model.conditioning.labels,
            text=isinstance(self.own.model.conditioning, Text),
            between=not self.own.model.of_codes,
        )

    def _offered(self, group: str, names: list[str]) -> list[str]:
        """What of a group's choices fits the model, and asks for nothing that the page does not."""
        of_codes = {"sampler": {"ardm"}, "grid": {"uniform", "cosine"}, "path": set[str]()}[group]
        if not self.own.model.of_codes:
            return first(TRAINED, [name for name in names if name not in ("ardm", "planned")])
        return first(TRAINED, [name for name in names if name in of_codes])

    def _steps(self, sampler: str) -> int:
        steps = CommandConfig.of("sample", [f"sampler={sampler}"]).keys["sampler.steps"]
        return self.own.loaded.sampling.steps if steps is None else steps

    def _load(self, path: str, autoencoder: str | None) -> Stages:
        loaded, stage1 = load_stages(path, self.keys.weights, autoencoder, self.keys.trust)
        model = LatentDiffusionModel.of(loaded, stage1, pick_device(self.keys.device))
        model.net.register_forward_pre_hook(self.ended.check)
        return Stages(loaded, stage1, model, newest(Path(path)))

    def stages(self, of: str) -> Stages:
        """Of another model, which is read again when it has been trained on; "" is the page's own."""
        if not of or of == self.keys.model:
            return self.own
        if of not in self.others or self.others[of].newest != newest(Path(of)):
            self.others.clear()
            self.others[of] = self._load(of, None)
        return self.others[of]

    def weak(self, path: str | None, strong: LoadedDiffusion) -> LoadedDiffusion | None:
        """The weaker model of autoguidance, if one is named; it, too, is read again when it has been trained on."""
        if path is None:
            return None
        if self.weaker is None or self.weaker[:2] != (path, newest(Path(path))):
            loaded = load_diffusion(path, self.keys.weights, self.keys.trust)
            loaded.net.register_forward_pre_hook(self.ended.check)
            self.weaker = path, newest(Path(path)), loaded
        check_weak(path, self.weaker[2], strong)
        return self.weaker[2]

    def line(self, settings: Settings, of: str = "", mark: str = "") -> str:
        words = [*self.keys.words(of, mark), *words_of(settings)]
        return " ".join(["ldm sample", *map(shlex.quote, words)])

    def options(self, settings: Settings, of: str = "") -> SampleOptions:
        """What the line says, as `ldm sample` reads it; ValueError in that command's words."""
        words = [*self.keys.words(of), *words_of(settings)]
        try:
            return SampleOptions.parse(compose("sample", words))
        except USER_ERRORS as error:
            raise ValueError(explain(error, "sample", words)) from None

    def plan(self, settings: Settings, of: str = "") -> Plan:
        with self.lock:  # Hydra composes for one at a time
            options, stages = self.options(settings, of), self.stages(of)
            weak = self.weak(options.weak, stages.loaded)
        guidance = guidance_of(options, stages.loaded, weak, stages.model.device)
        generator = planned(options, stages.loaded.card, stages.model, guidance)
        wanted = wanted_of(options, stages.loaded.card, generator.model)
        return Plan(
            generator=generator,
            told=wanted.told,
            rows=wanted.rows,
            names=wanted.names,
            batch_size=options.batch_size,
        )


def first(name: str, names: list[str]) -> list[str]:
    """The names with that one in front."""
    return [name, *(other for other in names if other != name)]
