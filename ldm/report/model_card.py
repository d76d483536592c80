"""README.md of an exported model: a hub's model card, of what the run and those around it say themselves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm import __version__
from ldm.report.facts import Lineage, Score, Stage
from ldm.runtime.files import flat

SAMPLES = "samples.png"  # beside the card
UNSAID = "not recorded"
SHOWN = 50  # class names


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a card says of the folder that it lies in.

    name:        of the folder
    scheduler:   diffusers' class
    steps:       that it takes where nothing is said
    class_names: in the order of their numbers
    resolution:  side of the images, in pixels
    guidance:    that is used where nothing is said; 1 is unguided
    network:     "U-Net" or "DiT"
    alone:       whether its folder is the model without the pipeline
    codes:       what of it is code
    """

    name: str
    scheduler: str
    steps: int
    class_names: list[str]
    resolution: int
    guidance: float
    network: str
    alone: bool
    codes: list[str]


def sample_picture(lineage: Lineage) -> Path | None:
    """The grid of the newest samples of a model; or the last that its training drew; None if there is neither."""
    for kind, of in (("samples", "samples"), ("diffusion", "progress")):
        found = [picture.path for stage in lineage.of_kind(kind) for picture in stage.pictures if picture.kind == of]
        if found:
            return found[-1]
    return None


def model_card(lineage: Lineage, exported: Exported) -> str:
    """The card as Markdown, with the front matter that hubs read.

    Args:
        lineage:  of the model's run
        exported: what it was written as
    """
    parts = [
        front_matter(exported),
        f"# {plain(exported.name)}",
        picture(lineage),
        what_it_is(lineage, exported),
        how_to_load(exported),
        data(lineage),
        recipes(lineage),
        scores(lineage),
        "## Licence\n\nTo be filled in by whoever publishes this: of the weights, and of the data that they have seen.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(exported: Exported) -> str:
    """YAML between lines of dashes. The licence is a comment, which hubs take for none."""
    kind = "class-conditional" if len(exported.class_names) > 1 else "unconditional"
    return "\n".join(
        [
            "---",
            "# license: fill in, as in mit, openrail or other",
            "library_name: diffusers",
            "pipeline_tag: unconditional-image-generation",
            f"tags: [latent-diffusion, {kind}, ldm]",
            "---",
        ]
    )


def picture(lineage: Lineage) -> str:
    return f"![Samples of this model]({SAMPLES})" if sample_picture(lineage) is not None else ""


def what_it_is(lineage: Lineage, exported: Exported) -> str:
    """A paragraph, and the classes."""
    names = exported.class_names
    classes = f"{len(names)} classes" if len(names) > 1 else "no classes"
    lines = [
        f"A latent diffusion model of images of {exported.resolution} x {exported.resolution} pixels, {classes}. An "
        f"autoencoder compresses images to latents; a {exported.network} turns noise into latents, which the "
        "autoencoder decodes.",
        table(
            [("", "stage 1: autoencoder", f"stage 2: {exported.network}")],
            [
                ("parameters", *(number(lineage, kind, "parameters") for kind in ("autoencoder", "diffusion"))),
                ("images seen", *(cost(lineage, kind, "images") for kind in ("autoencoder", "diffusion"))),
                ("hours of training", *(hours(lineage, kind) for kind in ("autoencoder", "diffusion"))),
                ("batches", *(setting(lineage, kind, "steps") for kind in ("autoencoder", "diffusion"))),
                (
                    "images of a batch",
                    *(number(lineage, kind, "images of a batch") for kind in ("autoencoder", "diffusion")),
                ),
                (
                    "learning rate",
                    *(setting(lineage, kind, "optimizer", "lr") for kind in ("autoencoder", "diffusion")),
                ),
                ("objective", "", objective(lineage)),
            ],
        ),
    ]
    if len(names) > 1:
        shown = ", ".join(plain(name) for name in names[:50])
        lines.append(
            f"Classes: {shown}" + (f", and {len(names) - 50} more (model_index.json)" * (len(names) > 50)) + "."
        )
    return "\n\n".join(lines)


def how_to_load(exported: Exported) -> str:
    example = json.dumps(exported.class_names[0])
    alone = "" if exported.alone else (
        f"\n\nThe pipeline does what diffusers' config of a {exported.network} has no key for: "
        f"{'transformer' if exported.network == 'DiT' else 'unet'}/ alone is not this model."
    )  # fmt: skip
    return f"""## How to load it

With diffusers and torch, where `FOLDER` is this folder or its id on a hub:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)
images = pipe([{example}], guidance_scale={exported.guidance:g}, num_inference_steps={exported.steps}).images
```

`trust_remote_code` runs the code of this folder, which is short: {", ".join(exported.codes)}. Scheduler:
{exported.scheduler}.{alone}"""


def data(lineage: Lineage) -> str:
    """What it was trained on, as the configs and the cache say it."""
    lines = []
    for stage in [*lineage.of_kind("autoencoder"), *lineage.of_kind("latents")]:
        config = {} if stage.recipe is None else stage.recipe.config
        source = config.get("data")
        if isinstance(source, dict):
            root = source.get("root") or str(source.get("_target_", "")).rpartition(".")[2]
            lines.append(f"- {stage.kind}: {plain(str(root))}, at {source.get('resolution', UNSAID)} pixels")
    for stage in lineage.of_kind("latents"):
        lines += [f"- {key}: {stage.facts[key]:,}" for key in ("images", "held-out images") if key in stage.facts]
    return "## Data\n\n" + ("\n".join(dict.fromkeys(lines)) or f"What it was trained on is {UNSAID} here.")


def recipes(lineage: Lineage) -> str:
    """The commands of the runs that lead to the model, to be repeated."""
    kinds = ("autoencoder", "latents", "diffusion")
    lines = [stage.recipe.line for kind in kinds for stage in lineage.of_kind(kind) if stage.recipe is not None]
    made = f"By ldm {__version__}, by these commands; what they do not say is as that version has it."
    return f"## How it was made\n\n{made}\n\n```sh\n" + "\n".join(lines) + "\n```" if lines else ""


def scores(lineage: Lineage) -> str:
    """Every score of its samples and of its autoencoder, beside what it depends on."""
    groups: dict[str, list[Score]] = {}
    for stage in [*lineage.of_kind("scores"), *lineage.of_kind("likelihood")]:
        for score in stage.scores:
            what = "held-out images" if score.name.startswith("reconstruction") else "samples"
            groups.setdefault(f"Of {'bits' if stage.kind == 'likelihood' else what}", []).append(score)
    if not groups:
        return "## Scores\n\nNone: no `ldm evaluate` of samples of this model lay beside it."
    parts = ["## Scores", "A score may be compared with others only where all that it depends on is the same."]
    parts += sampled(lineage)
    for what, members in groups.items():
        common = {
            key: value
            for key, value in members[0].depends.items()
            if all(score.depends.get(key) == value for score in members)
        }
        rows: list[tuple[str, ...]] = [
            (f"`{score.name}`", f"{score.value:.4g}", depends(score.depends, common)) for score in members
        ]
        parts.append(table([("score", "value", "depends also on")], rows))
        parts.append(f"{what}; all depend on {depends(common, {})}." if common else f"{what}.")
    return "\n\n".join(parts)


def sampled(lineage: Lineage) -> list[str]:
    """How each set of samples was drawn, a sentence each."""
    said = []
    for stage in lineage.of_kind("samples"):
        if "sampler" in (facts := stage.facts):
            weights = {"ema": "averaged", "raw": "raw"}.get(facts["weights"], f"{facts['weights']} averaged")
            said.append(
                f"Samples in {plain(str(stage.run.name))}: {facts['samples']:,} by {plain(str(facts['sampler']))} in "
                f"{facts['steps']} steps, guidance {facts['guidance']:g}, seed {facts['seed']}, {weights} weights."
            )
    return said


def depends(named: dict[str, Any], common: dict[str, Any]) -> str:
    """What a score depends on, but for what it has in common with others."""
    flattened = flat({key: value for key, value in named.items() if key not in common})
    return plain("; ".join(f"{key} {value}" for key, value in flattened.items() if value is not None))


def objective(lineage: Lineage) -> str:
    """Path and prediction of stage 2, in its config's words."""
    for stage in lineage.of_kind("diffusion"):
        node: Any = {} if stage.recipe is None else stage.recipe.config.get("objective")
        if isinstance(node, dict) and node.get("codes"):
            return plain("codes, place by place (autoregressive diffusion)")
        if isinstance(node, dict):
            path = str(node.get("path", {}).get("_target_", "")).rpartition(".")[2]
            return plain(f"{node.get('parameterization')} on {path}")
    return UNSAID


def number(lineage: Lineage, kind: str, fact: str) -> str:
    values = [stage.facts[fact] for stage in lineage.of_kind(kind) if isinstance(stage.facts.get(fact), int)]
    return f"{values[0]:,}" if values else UNSAID


def setting(lineage: Lineage, kind: str, *keys: str) -> str:
    """A value of a stage's config."""
    for stage in lineage.of_kind(kind):
        node: Any = {} if stage.recipe is None else stage.recipe.config
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, int | float):
            return f"{node:,}" if isinstance(node, int) else f"{node:g}"
    return UNSAID


def cost(lineage: Lineage, kind: str, name: str) -> str:
    values = [getattr(stage.cost, name) for stage in lineage.of_kind(kind)]
    return f"{values[0]:,}" if values and values[0] is not None else UNSAID


def hours(lineage: Lineage, kind: str) -> str:
    stages: list[Stage] = lineage.of_kind(kind)
    seconds = stages[0].cost.seconds if stages else None
    return UNSAID if seconds is None else f"{seconds / 3600:.2g}"


def table(head: list[tuple[str, ...]], rows: list[tuple[str, ...]]) -> str:
    """Rows of Markdown."""
    lines = [*head, tuple("---" for _ in head[0]), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str) -> str:
    """Text that Markdown, HTML and a table's row leave as it is."""
    text = " ".join(text.split())
    for letter in "\\`*_[]<>|#&":
        text = text.replace(letter, f"\\{letter}")
    return text
