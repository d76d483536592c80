"""What each command leaves in its run folder, read by the classes of its files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.data.formats import MANIFEST, Manifest
from ldm.evaluation.comparison import NETWORK_OF, numbers
from ldm.evaluation.result_files import SAMPLES, STAMP, LikelihoodFile, MetricsFile, SampleStamp
from ldm.report.facts import Cost, Link, Picture, Recipe, RecipeOf, Score, Stage
from ldm.report.places import bytes_of, places
from ldm.report.trained import short, trained_stage

METRICS_FILE, LIKELIHOOD_FILE = "metrics.json", "likelihood.json"
MODELS = ("diffusion", "autoencoder")
BITS = ("latent_bits_per_dim", "image_bits_per_dim_at_most")  # likelihood.json's scores
OF_BITS = ("images", "split", "pixels", "batch_size", "likelihood", "model", "autoencoder", "seed")


def read_run(run: Path, recipe_of: RecipeOf) -> Stage:
    """A run folder as a stage.

    Raises:
        ValueError: if it is no run folder, or its config.yaml is damaged. Of its other files, what is missing or
            damaged is among the stage's problems.
    """
    recipe = recipe_of(run)
    return READERS.get(recipe.command, other_stage)(run, recipe)


def other_stage(run: Path, recipe: Recipe) -> Stage:
    """Of a command that leaves neither model nor scores: the model that it was made from is followed."""
    named = next(
        (str(recipe.config[key]) for key in ("model", "source", "autoencoder") if recipe.config.get(key)), None
    )
    links = () if named is None else (Link(MODELS, "", places(run, recipe.config, named), named),)
    pairs = run / "pairs.png"
    pictures = (Picture("pairs", pairs, "pictures and their reconstructions"),) if pairs.is_file() else ()
    cost = Cost(disk_bytes=bytes_of(run))
    return Stage(kind="other", run=run, recipe=recipe, made_from=links, pictures=pictures, cost=cost)


def converted_stage(run: Path, recipe: Recipe) -> Stage:
    """An imported model, or an exported one."""
    return trained_stage(run, None, recipe) if recipe.config.get("to") == "ldm" else other_stage(run, recipe)


def unfinished(kind: str, run: Path, recipe: Recipe, error: Exception) -> Stage:
    """A run without the file that says what it made."""
    return Stage(kind=kind, run=run, recipe=recipe, cost=Cost(disk_bytes=bytes_of(run)), problems=(str(error),))


def latents_stage(run: Path, recipe: Recipe) -> Stage:
    """A latent cache."""
    named = str(recipe.config.get("autoencoder"))
    try:
        manifest = Manifest.read(run / MANIFEST)
    except (ValueError, OSError) as error:
        stage = unfinished("latents", run, recipe, error)
        fingerprint = ""
    else:
        fingerprint = manifest.autoencoder
        stage = Stage(
            kind="latents",
            run=run,
            recipe=recipe,
            facts={
                "images": manifest.count.train,
                "held-out images": manifest.count.val,
                "views": manifest.views,
                "latent shape": [manifest.shape[0] // 2, *manifest.shape[1:]],
                "classes": len(manifest.class_names),
                "class names": manifest.class_names,
                "resolution": manifest.preprocessing.get("resolution"),
                "mean": manifest.mean,
                "std": manifest.std,
                "whitened": manifest.whitening is not None,
            },
            cost=Cost(images=manifest.count.train + manifest.count.val, disk_bytes=bytes_of(run)),
        )
    link = Link(("autoencoder",), fingerprint, places(run, recipe.config, named), named)
    return replace(stage, made_from=(link,))


def pairs_stage(run: Path, recipe: Recipe) -> Stage:
    """A teacher's samples as latents, made from the teacher."""
    stage, named = latents_stage(run, recipe), str(recipe.config.get("teacher"))
    fingerprint, nearby = "", places(run, recipe.config, named)
    if not stage.problems and (pairs := Manifest.read(run / MANIFEST).pairs) is not None:
        fingerprint, nearby = pairs.teacher, (run / pairs.teacher_path, *nearby)
        drawn = {"sampler": short(pairs.sampler.get("function")), "steps": pairs.sampler.get("steps")}
        stage = replace(stage, facts=stage.facts | drawn | {"guidance": pairs.guidance, "seed": pairs.seed})
    return replace(stage, made_from=(Link(("diffusion",), fingerprint, nearby, named),))


def samples_stage(run: Path, recipe: Recipe) -> Stage:
    """Samples, with their stamp."""
    named, config = str(recipe.config.get("model")), recipe.config
    pictures = [
        Picture(kind, run / f"{name}.png", said)
        for kind, name, said in (
            ("samples", "grid", "samples, a row a class"),
            ("trajectory", "trajectory", "from noise to a sample: x_t above, the predicted x0 below"),
            ("interpolation", "interpolation", "from one seed or class to another"),
        )
        if (run / f"{name}.png").is_file()
    ]
    try:
        stamp = SampleStamp.read(run / STAMP)
    except (ValueError, OSError) as error:
        link = Link(("diffusion",), "", places(run, config, named), named)
        return replace(unfinished("samples", run, recipe, error), made_from=(link,), pictures=tuple(pictures))
    nearby = (run / stamp.model_path, *places(run, config, named))
    return Stage(
        kind="samples",
        run=run,
        recipe=recipe,
        facts={
            "samples": stamp.num,
            "classes": stamp.classes,
            "class names": stamp.class_names,
            "sampler": short(stamp.sampler.get("function")),
            "steps": stamp.sampler.get("steps"),
            "grid": short(stamp.grid),
            "path": short(stamp.path),
            "guidance": stamp.guidance,
            "guidance interval": stamp.guidance_interval,
            "weights": stamp.weights,
            "seed": stamp.seed,
            "precision": stamp.precision,
            "evaluations": stamp.evaluations,
            "batches of its model": stamp.batches_trained,
        },
        fingerprints=(stamp.sha256,),
        made_from=(Link(("diffusion",), stamp.model, nearby, named),),
        pictures=tuple(pictures),
        cost=Cost(images=stamp.num, evaluations=stamp.evaluations, disk_bytes=bytes_of(run)),
        problems=() if (run / SAMPLES).is_file() else (f"{run / SAMPLES} is missing: sample again",),
    )


def scores_stage(run: Path, recipe: Recipe) -> Stage:
    """Scores of samples, of an autoencoder, or of both."""
    config = recipe.config
    try:
        metrics = MetricsFile.read(run / METRICS_FILE)
    except (ValueError, OSError) as error:
        return replace(unfinished("scores", run, recipe, error), made_from=links_of_scores(run, config, {}, ""))
    stamp, fingerprint = metrics.samples, str(metrics.scores.get("reconstruction", {}).get("autoencoder", ""))
    plain = metrics.model_dump()
    scores = [
        Score(name=name, value=score.value, depends=score.depends, beside=beside_of(metrics, name))
        for name, score in numbers(plain).items()
    ]
    neighbours = run / "neighbours.png"
    said = "samples, and the training images that are closest to them"
    facts = {"samples": stamp.get("num"), "set": stamp.get("set"), "versions": metrics.versions}
    return Stage(
        kind="scores",
        run=run,
        recipe=recipe,
        facts={name: value for name, value in facts.items() if value is not None},
        made_from=links_of_scores(run, config, stamp, fingerprint),
        scores=tuple(scores),
        pictures=(Picture("neighbours", neighbours, said),) if neighbours.is_file() else (),
        cost=Cost(images=stamp.get("num"), disk_bytes=bytes_of(run)),
    )


def links_of_scores(run: Path, config: dict[str, Any], stamp: dict[str, Any], autoencoder: str) -> tuple[Link, ...]:
    """The samples that were scored; their model, should the samples be gone; the autoencoder that reconstructed."""
    links, samples = [], config.get("samples")
    if samples is not None and (stamp.get("model") or not stamp):
        at = places(run, config, str(samples))
        links.append(Link(("samples",), str(stamp.get("sha256", "")), at, str(samples)))
        if stamp.get("model"):
            model = str(stamp.get("model_path"))
            links.append(Link(("diffusion",), str(stamp["model"]), tuple(place / model for place in at), model))
    named = config.get("autoencoder") or stamp.get("autoencoder_path")
    if named is not None and (autoencoder or not links):
        links.append(Link(("autoencoder",), autoencoder, places(run, config, str(named)), str(named)))
    return tuple(links)


def beside_of(metrics: MetricsFile, name: str) -> dict[str, Any]:
    """What metrics.json says with a score, beside its value and what it depends on."""
    score = metrics.scores.get(name.partition(" ")[0] if name.startswith("reconstruction ") else name, {})
    hidden = {"value", "depends", "of", "autoencoder", *NETWORK_OF}
    return {key: value for key, value in score.items() if key not in hidden and value is not None}


def likelihood_stage(run: Path, recipe: Recipe) -> Stage:
    """Bits per dimension."""
    config, named = recipe.config, str(recipe.config.get("model"))
    at = places(run, config, named)
    try:
        file = LikelihoodFile.read(run / LIKELIHOOD_FILE)
    except (ValueError, OSError) as error:
        link = Link(("diffusion",), "", at, named)
        return replace(unfinished("likelihood", run, recipe, error), made_from=(link,))
    said: dict[str, Any] = file.model_extra or {}
    depends = {key: said[key] for key in OF_BITS if key in said} | {"weights": file.weights}
    beside = {key: value for key, value in said.items() if key not in (*OF_BITS, *BITS) and value is not None}
    values = {name: said[name] for name in BITS if type(said.get(name)) in (int, float)}
    scores = [Score(name=name, value=float(value), depends=depends, beside=beside) for name, value in values.items()]
    return Stage(
        kind="likelihood",
        run=run,
        recipe=recipe,
        made_from=(Link(("diffusion",), str(said.get("model", "")), at, named),),
        scores=tuple(scores),
        cost=Cost(evaluations=said.get("evaluations"), images=said.get("images"), disk_bytes=bytes_of(run)),
    )


READERS: dict[str, Callable[[Path, Recipe], Stage]] = {
    "train-autoencoder": lambda run, recipe: trained_stage(run, "autoencoder", recipe),
    "cache-latents": latents_stage,
    "cache-pairs": pairs_stage,
    "train-diffusion": lambda run, recipe: trained_stage(run, "diffusion", recipe),
    "sample": samples_stage,
    "evaluate": scores_stage,
    "likelihood": likelihood_stage,
    "convert": converted_stage,
}
