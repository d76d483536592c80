"""A lineage as one page of HTML that needs nothing beside itself: no file, no network, no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ldm import __version__
from ldm.report import words
from ldm.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, charts
from ldm.report.embedded import Embedded, embedded
from ldm.report.facts import Lineage, Picture, Score, Stage
from ldm.runtime.files import flat

FIRST = 6  # charts that are seen at once
LONG = 40  # characters of a value that takes a line of its own
SMALL = 64  # pixels of images whose pixels are meant to be seen
SHOWN_ELSEWHERE = ("class names", "versions")  # facts that have a place of their own


@dataclass(frozen=True)
class Shown:
    """A picture in the page, or a sentence of what is wrong with it."""

    picture: Picture
    content: Embedded | None
    problem: str
    pixels: bool


@dataclass(frozen=True)
class Scores:
    """Some of a run's scores. common: what all of them depend on; own: of each, by name, the rest."""

    what: str
    scores: list[Score]
    common: dict[str, Any]
    own: dict[str, dict[str, Any]]


def page(lineage: Lineage) -> str:
    """The HTML of a lineage."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["long"] = lambda given: len(words.value(given)) > LONG
    environment.filters |= {
        "value": words.value,
        "number": words.number,
        "setting": words.setting,
        "place": words.place,
        "counted": words.counted,
        "duration": words.duration,
        "score_name": words.score_name,
        "score_hint": words.score_hint,
        "flat": flat,
    }
    pictures = {stage.run: [shown(picture, lineage) for picture in stage.pictures] for stage in lineage.stages}
    problems = [*lineage.problems, *(problem for stage in lineage.stages for problem in stage.problems)]
    problems += [each.problem for found in pictures.values() for each in found if each.problem]
    return environment.get_template("page.html").render(
        lineage=lineage,
        summary=summary(lineage),
        version=__version__,
        problems=list(dict.fromkeys(map(sentence, problems))),
        kinds=words.KINDS,
        anchors={stage.run: f"run-{i}" for i, stage in enumerate(lineage.stages)},
        pictures=pictures,
        charts={stage.run: charts(stage.curves) for stage in lineage.stages},
        scores=[(stage, grouped(stage.scores)) for stage in lineage.stages if stage.scores],
        facts={stage.run: facts_of(stage) for stage in lineage.stages},
        amount=words.amount,
        first=FIRST,
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
    )


def shown(picture: Picture, lineage: Lineage) -> Shown:
    """A picture made ready; its pixels are kept sharp where the lineage's images are small."""
    resolutions = [stage.facts["resolution"] for stage in lineage.stages if stage.facts.get("resolution")]
    pixels = bool(resolutions) and max(resolutions) <= SMALL
    try:
        return Shown(picture, embedded(picture.path), "", pixels)
    except ValueError as error:
        return Shown(picture, None, str(error), pixels)


def summary(lineage: Lineage) -> str:
    """The lineage in a sentence, as far as its files tell."""
    models = lineage.of_kind("diffusion") or lineage.of_kind("autoencoder")
    if not models or "parameters" not in models[-1].facts:
        return ""
    facts, said = models[-1].facts, list[str]()
    said.append(f"{facts['parameters'] / 1e6:.3g} million parameters")
    said += [f"images of {facts['resolution']} pixels"] if "resolution" in facts else []
    said += [f"{facts['classes']:,} classes" if facts["classes"] > 1 else "no classes"] if "classes" in facts else []
    said += [f"trained for {facts['batches']:,} batches"] if facts["batches"] else []
    return f"{words.KINDS[models[-1].kind]}: {', '.join(said)}."


def sentence(problem: str) -> str:
    return problem if problem.endswith(".") else f"{problem}."


def facts_of(stage: Stage) -> dict[str, Any]:
    """What is shown of a stage; its class names unless they are numbers counted up."""
    facts = {name: value for name, value in stage.facts.items() if name not in SHOWN_ELSEWHERE}
    names = stage.facts.get("class names", [])
    if stage.kind in ("latents", "diffusion") and names != [str(i) for i in range(len(names))]:
        facts["class names"] = names
    if stage.fingerprints:
        facts["fingerprint"] = stage.fingerprints[0]
    return facts


def grouped(scores: Sequence[Score]) -> list[Scores]:
    """Scores of samples, and those of reconstructions, each with what all of them depend on said once."""
    of_both = {"reconstruction": [score for score in scores if score.name.startswith("reconstruction ")]}
    of_both = {"samples": [score for score in scores if score not in of_both["reconstruction"]]} | of_both
    return [common_of(what, some) for what, some in of_both.items() if some]


def common_of(what: str, scores: list[Score]) -> Scores:
    depends = {score.name: flat(score.depends) for score in scores}
    first, *others = depends.values()
    common = {key: value for key, value in first.items() if others and all((key, value) in o.items() for o in others)}
    own = {name: {k: v for k, v in each.items() if k not in common} for name, each in depends.items()}
    return Scores(what, scores, common, own)
