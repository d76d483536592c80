"""From one run to all that it was made from, and to those beside it that were made from it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ldm.data.formats import MANIFEST, Manifest
from ldm.evaluation.result_files import STAMP, LikelihoodFile, MetricsFile, SampleStamp
from ldm.report.facts import Lineage, Link, RecipeOf, Stage
from ldm.report.places import beside, run_of
from ldm.report.reading import LIKELIHOOD_FILE, METRICS_FILE, read_run
from ldm.runtime.files import CONFIG

ORDER = ("autoencoder", "latents", "diffusion", "samples", "scores", "likelihood", "other")
WORDS = {"latents": "latent cache", "diffusion": "diffusion model", "scores": "scores"}
PLURAL = ("latents", "samples", "scores")
MOST = 12  # runs downstream that are taken in


def gather(start: Path, recipe_of: RecipeOf) -> Lineage:
    """A run with all that it was made from, and the runs beside it that name it by its fingerprint, or by its place.

    Raises:
        ValueError: if the folder is no run.
    """
    if not start.is_dir():
        raise ValueError(f"{start} {'is no folder' if start.exists() else 'does not exist'}: name a run's folder")
    if not (start / CONFIG).exists():
        raise ValueError(f"{start} is no run: it has no {CONFIG}; name a folder that an ldm command made")
    found = _Found(recipe_of)
    stage = found.read(start)
    if stage.recipe is not None and stage.recipe.command == "probe" and (start / "metrics" / CONFIG).exists():
        stage = found.read(start / "metrics")  # a probe is its own chain
    found.add(stage)
    found.add_downstream(stage)
    stages = sorted(found.stages.values(), key=lambda stage: ORDER.index(stage.kind))
    return Lineage(start=start, stages=tuple(stages), problems=tuple(dict.fromkeys(found.problems)))


@dataclass
class _Found:
    """What has been gathered so far, by the runs' places."""

    recipe_of: RecipeOf
    stages: dict[Path, Stage] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    cached: dict[Path, Stage] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)

    def read(self, run: Path) -> Stage:
        """A run's stage, read once. ValueError where it is none."""
        place = run.resolve()
        if place not in self.cached:
            self.cached[place] = read_run(Path(os.path.relpath(os.path.abspath(run))), self.recipe_of)
        return self.cached[place]

    def add(self, stage: Stage) -> None:
        """Take in a run, once those that it was made from are."""
        place = stage.run.resolve()
        if place in self.stages:
            return
        self.stages[place] = stage  # before the others: of two runs that name each other, neither is read again
        for link in stage.made_from:
            if link.fingerprint and link.fingerprint in self.known():
                continue
            source, said = self.follow(link, stage)
            if said:
                self.problems.append(said)
                self.missed.add(link.fingerprint)
            if source is not None:
                self.add(source)

    def known(self) -> set[str]:
        """The fingerprints that need not be looked for: those of the runs that are here, and those that were missed."""
        return self.missed | {each for stage in self.stages.values() for each in stage.fingerprints}

    def follow(self, link: Link, stage: Stage) -> tuple[Stage | None, str]:
        """The run that a link names, and what is wrong with it: it is gone, or has become another; "" = nothing."""
        named, said = self.candidates(map(run_of, link.places), link)
        for found in named:
            if not link.fingerprint or link.fingerprint in found.fingerprints:
                return found, ""
        if named and not named[0].fingerprints:  # it says itself what is wrong with it
            return named[0], ""
        if link.fingerprint:
            for found in self.candidates(islice(beside(stage.run), MOST), link)[0]:
                if link.fingerprint in found.fingerprints:
                    return found, ""
        what = WORDS.get(link.wants[0], link.wants[0])
        verb = "were" if stage.kind in PLURAL else "was"
        if named:
            other = f"its fingerprint is {named[0].fingerprints[0]}, and was {link.fingerprint}"
            return named[0], f"{named[0].run} is no longer the {what} that {stage.run} {verb} made from: {other}."
        wanted = f"{link.named}, {link.fingerprint}" if link.fingerprint else link.named
        return None, said or f"The {what} that {stage.run} {verb} made from ({wanted}) is not there."

    def candidates(self, folders: Iterable[Path], link: Link) -> tuple[list[Stage], str]:
        """Those of some folders that are runs of the kind that a link wants, and what the first damaged one says."""
        found, said = list[Stage](), ""
        for folder in folders:
            if (folder / CONFIG).is_file():
                try:
                    stage = self.read(folder)
                except (ValueError, OSError) as error:
                    said = said or str(error)
                    continue
                found += [stage] if stage.kind in link.wants else []
        return found, said

    def add_downstream(self, start: Stage) -> None:
        """Take in the runs beside the start that name it, or that name one of those."""
        names, ours = {run: named_by(run) for run in beside(start.run) if (run / CONFIG).is_file()}, [start]
        left = [run for run in names if run.resolve() not in self.stages]
        for _ in ORDER:  # each round goes one command further down
            made = {fingerprint for stage in ours for fingerprint in stage.fingerprints}
            here = {stage.run.resolve() for stage in ours}
            new = [run for run in left if names[run] & made or self.trained_on(run, here)]
            for run in new[: MOST - len(ours) + 1]:
                try:
                    stage = self.read(run)
                except (ValueError, OSError) as error:
                    self.problems.append(str(error))
                    continue
                self.add(stage)
                ours.append(stage)
            left = [run for run in left if run not in new]
            if len(ours) > MOST:
                self.problems.append(f"Beside {start.run} lie more runs that were made from it; {MOST} are shown.")
                return
            if not new:
                return

    def trained_on(self, run: Path, places: set[Path]) -> bool:
        """Whether a run of stage 2 was trained on one of these caches: it names the cache by its place alone."""
        if not (run / "checkpoints").is_dir():
            return False
        try:
            links = self.read(run).made_from
        except (ValueError, OSError):
            return False
        return any(run_of(place).resolve() in places for link in links for place in link.places)


def named_by(run: Path) -> set[str]:
    """The fingerprints that a run's files name as what it was made from; nothing of files that are damaged."""
    names: set[str] = set()
    try:
        if (run / STAMP).is_file():
            stamp = SampleStamp.read(run / STAMP)
            names |= {stamp.model, stamp.autoencoder}
        if (run / METRICS_FILE).is_file():
            metrics = MetricsFile.read(run / METRICS_FILE)
            names |= texts(metrics.samples.get(key) for key in ("sha256", "model", "autoencoder"))
            names |= texts([metrics.scores.get("reconstruction", {}).get("autoencoder")])
        if (run / LIKELIHOOD_FILE).is_file():
            said = LikelihoodFile.read(run / LIKELIHOOD_FILE).model_extra or {}
            names |= texts(said.get(key) for key in ("model", "autoencoder"))
        if (run / MANIFEST).is_file():
            names.add(Manifest.read(run / MANIFEST).autoencoder)
    except (ValueError, OSError):
        return names
    return names


def texts(values: Iterable[object]) -> set[str]:
    return {value for value in values if isinstance(value, str)}
