"""Score samples against real images, and the autoencoder's reconstructions: metrics.json."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.commands.entry import build, build_loggers, plain, whole, write_config

PICTURE = "neighbours.png"


def main(config: DictConfig, run: Path) -> float | None:
    import torch

    from ldm import __version__
    from ldm.evaluation.sample_scores import Reader
    from ldm.runtime.files import sha256, write_json
    from ldm.runtime.loggers import artifact, record
    from ldm.runtime.ranks import gather, join_ranks, pick_device, precision

    source, device, batch_size = build(config.data), pick_device(config.device), whole(config, "batch_size")
    stamp, scores = chosen(config, run, source, device)
    rank, world = join_ranks()
    read = Reader(device=device, batch_size=batch_size, num_workers=config.num_workers, rank=rank, world=world)
    shares = gather([score.look(read) for score in scores])
    if rank != 0:
        return None
    metrics: dict[str, Any] = {}
    for i, score in enumerate(scores):
        metrics |= score.compute([share[i] for share in shares])
    computed = f"{precision(device)} features, float64 sums"
    libraries = {name: version(name) for name in ("torch-fidelity", "torchmetrics", "lpips")}
    versions = {"ldm": __version__, "torch": torch.__version__, "precision": computed} | libraries
    write_config(config, run)
    write_json(run / "metrics.json", metrics | {"samples": stamp, "versions": versions})
    values = report(metrics, run)
    source.report_skipped()
    made = [artifact("metrics", sha256(run / "metrics.json"), run / "metrics.json")]
    pictures = {"neighbours": run / PICTURE} if "memorisation" in metrics else {}
    loggers = build_loggers(config.logger, run)
    record(loggers, plain(config), used=used(config, metrics, run), made=made, scores=values, pictures=pictures)
    return values.get("frechet_distance")


def chosen(config: DictConfig, run: Path, source: Any, device: Any) -> tuple[dict[str, Any], list[Any]]:
    """What is known of the samples, and the scores that are asked for; ValueError before anything is computed."""
    import torch

    from ldm.data.sources import Digits
    from ldm.evaluation import model_scores
    from ldm.evaluation import sample_scores as scores
    from ldm.evaluation.image_sets import SourceSet, open_set
    from ldm.losses.perceptual import PerceptualLoss
    from ldm.metrics.features import features_for, load_features

    if config.reference is not None and config.features is None:
        raise ValueError("features=null compares with no reference: pass reference=null, or features=")
    wanted = [key for key in ("classifier", "reference", "memorisation", "likelihood") if config[key]]
    if config.samples is None and (wanted or not config.reconstruction):
        what = f"{wanted[0]} needs samples" if wanted else "pass reconstruction=true"
        raise ValueError(f"samples=null scores an autoencoder alone: {what}")
    samples: Any = None if config.samples is None else open_set(Path(config.samples), source, "samples")
    stamp, folder = ({}, run) if samples is None else (samples.stamp, folder_of(config.samples))
    theirs = stamp.get("class_names", source.class_names)
    if theirs != source.class_names and (config.reference is None or wanted != ["reference"] or config.reconstruction):
        raise ValueError(
            f"the samples' model was trained on the classes {theirs}, data has {source.class_names}: pass data="
        )
    if config.reference is None or config.memorisation or config.reconstruction:
        compare_preparation(stamp.get("preprocessing") or {}, source, refuse=bool(config.memorisation))
    train, held_out = SourceSet(source, ("train",)), SourceSet(source, ("val",))
    against = {} if samples is None or config.features is None else of_reference(config, train, device)
    example = torch.zeros(2, 3, source.resolution, source.resolution, dtype=torch.uint8)
    asked = config.features
    if asked == "auto" and config.reference is not None and stamp.get("preprocessing") != source.preprocessing():
        asked = "inception"  # data may be the digits by default alone
    name = features_for(asked, digits=isinstance(source, Digits))
    extractor: Any = None if name is None else load_features(name, example).to(device)

    found: list[Any] = []
    if samples is not None and extractor is not None:
        found.append(scores.FeatureScores(samples=samples, extractor=extractor, **against))
    if config.classifier is not None:
        check_labels(config.samples, samples, source.class_names)
        classifier = build_classifier(config.classifier, train, example, device)
        found.append(scores.ClassAccuracy(samples=samples, held_out=held_out, classifier=classifier))
    if config.memorisation:
        if extractor is None:
            raise ValueError("memorisation is measured in feature space: pass features=")
        sets = {"samples": samples, "train": train, "held_out": held_out}
        num, picture = whole(config, "memorisation"), run / PICTURE
        found.append(scores.Memorisation(extractor=extractor, num=num, picture=picture, **sets))
    if config.reconstruction:
        autoencoder = its_autoencoder(config, stamp, folder)
        weights = config.lpips
        if weights == "auto":  # those that it was trained with; an imported one was trained elsewhere
            weights = autoencoder.card["config"].get("loss", {}).get("perceptual_pretrained")
            if weights is None:
                print("reconstruction lpips: left out, as this autoencoder names no VGG16: pass lpips=true or false")
        perceptual = None if weights is None else PerceptualLoss(pretrained=weights, key="lpips")
        options = {"extractor": extractor, "perceptual": perceptual, "tile": config.tile}
        found.append(model_scores.Reconstruction(autoencoder=autoencoder, held_out=held_out, **options))
    if config.likelihood:
        found.append(likelihood_of(config, stamp, folder, source))
    if not found:
        raise ValueError("nothing to score: pass features=, classifier= or reconstruction=true")
    return stamp | ({} if samples is None else samples.card), found


def check_labels(name: str, samples: Any, class_names: list[str]) -> None:
    """ValueError where a classifier of these classes can't tell which samples are right."""
    from ldm.evaluation.image_sets import Array

    if isinstance(samples, Array):
        if samples.labels is None:
            raise ValueError(f"samples={name} has no labels (arr_1) for a classifier to find: pass classifier=null")
        if not 0 <= samples.labels.min() <= samples.labels.max() < len(class_names):
            labels = f"{samples.labels.min()} ... {samples.labels.max()}"
            raise ValueError(
                f"samples={name} has the labels {labels}, data has {len(class_names)} classes: pass data=, or "
                "classifier=null"
            )
    elif samples.source.class_names != class_names:
        raise ValueError(
            f"samples={name} has the classes {samples.source.class_names}, data {class_names}: "
            "a classifier needs the same, in the same order; or pass classifier=null"
        )


def compare_preparation(theirs: dict[str, Any], source: Any, refuse: bool) -> None:
    """Say where data is prepared in another way than what the samples' model has seen; ValueError where that would
    pass copies for new images."""
    ours = source.preprocessing()
    other = [key for key in theirs if theirs[key] != ours.get(key)]  # an imported model knows its resolution alone
    if other:
        said = " ".join(f"data.{key}={theirs[key]} (now {ours.get(key)})" for key in other)
        said = f"the samples' model was trained on images of {said}"
        if refuse:
            raise ValueError(f"{said}: memorisation needs the same ones")
        print(f"{said}: its samples are compared with other crops")


def folder_of(samples: str) -> Path:
    """The run folder that a run, or its samples.npz, lies in: what paths in its stamp are relative to."""
    return Path(samples).parent if Path(samples).suffix == ".npz" else Path(samples)


def of_reference(config: DictConfig, train: Any, device: Any) -> dict[str, Any]:
    """What the samples' features are compared with, and how."""
    from ldm.evaluation.image_sets import holds_images, open_set
    from ldm.metrics.statistics import known_statistics
    from ldm.runtime.ranks import precision

    keep, asked = whole(config, "keep"), config.neighbours
    if not isinstance(asked, DictConfig):
        raise ValueError(f"neighbours={asked} must be two numbers: neighbours.precision_recall=, .density_coverage=")
    neighbours = {name: whole(asked, name) for name in ("precision_recall", "density_coverage")}
    if keep <= max(neighbours.values()):
        raise ValueError(f"keep={keep} must be more than neighbours={neighbours}")
    reference, known = train, {}
    if config.reference is not None:
        path = Path(config.reference)
        known = known_statistics(path)
        reference = None if known and not holds_images(path) else open_set(path, train.source, "reference")
    return {
        "reference": reference,
        "known": known,
        "folder": None if config.statistics is None else Path(config.statistics),
        "keep": keep,
        "neighbours": neighbours,
        "precision": precision(device),
        "seed": config.seed,
    }


def its_autoencoder(config: DictConfig, stamp: dict[str, Any], folder: Path) -> Any:
    """The one that the samples in `folder` were decoded with, or the one that is given."""
    from ldm.checkpoint import load_autoencoder, matching_autoencoder

    if "autoencoder" in stamp:
        return matching_autoencoder(config.autoencoder, stamp["autoencoder_path"], folder, stamp["autoencoder"])
    if config.autoencoder is None:
        raise ValueError("no samples name an autoencoder: pass autoencoder=PATH, or reconstruction=false")
    return load_autoencoder(config.autoencoder)


def likelihood_of(config: DictConfig, stamp: dict[str, Any], folder: Path, source: Any) -> Any:
    """Of the model that made the samples."""
    from ldm.checkpoint import load_diffusion
    from ldm.evaluation.bits_per_dim import check
    from ldm.evaluation.model_scores import Bits

    if "model_path" not in stamp:
        raise ValueError("likelihood is of samples that name their model: a run of `ldm sample`")
    model = load_diffusion(folder / stamp["model_path"], stamp["weights"])
    if model.fingerprint != stamp["model"]:
        raise ValueError(f"{folder / stamp['model_path']} is no longer the model that these samples are from")
    autoencoder = its_autoencoder(config, stamp, folder)
    check(source, model.card, autoencoder)
    num = whole(config, "likelihood")
    return Bits(model=model, autoencoder=autoencoder, source=source, num=num, seed=config.seed)


def build_classifier(name: str, train: Any, example: Any, device: Any) -> Any:
    """ "svc", trained on the training images, or a file."""
    import torch

    from ldm.data.sources import Digits
    from ldm.metrics.classifier import FileClassifier, PixelClassifier

    if name != "svc":
        return FileClassifier(Path(name), example, len(train.source.class_names)).to(device)
    if not isinstance(train.source, Digits):
        raise ValueError("classifier=svc is for the digits only: name a file of logits")
    images, labels = zip(*train.batches(1000, 0, 0, 1), strict=True)
    return PixelClassifier(torch.cat(images), torch.cat(labels))


def report(metrics: dict[str, Any], run: Path) -> dict[str, float]:
    """Print the scores, and return them flat."""
    from ldm.evaluation.sample_scores import FEW

    values = {name: score["value"] for name, score in metrics.items() if "value" in score}
    own = metrics.get("reconstruction", {})
    values |= {f"reconstruction/{k}": own[k] for k in ("psnr", "ssim", "lpips", "rfd") if k in own}
    for name, value in values.items():
        print(f"{name.replace('/', ' ')}: {value:.4g}")
    distance = metrics.get("frechet_distance")
    if distance is not None:
        depends, reference = distance["depends"], distance["depends"]["reference"]
        print(f"features: {depends['extractor']}; reference: {reference.get('set', 'known statistics')}")
        count, real = depends["samples"], reference["images"]
        if min(count, real or count) < FEW:
            bias = distance["expected_of_perfect_samples"]
            perfect = f"{bias:.4g} (for Gaussian features)" if bias is not None else "what so few images do not tell"
            print(
                f"{count} samples against {real or 'unknown'} images, fewer than {FEW}: perfect samples would score "
                f"{perfect}, and only distances of equally many may be compared"
            )
    if "kernel_distance" in metrics and "precision" not in metrics:
        kept = metrics["kernel_distance"]["depends"]["kept"]
        print(f"precision, recall, density and coverage are left out: {kept[0]} and {kept[1]} images are too few")
    print(f"scores and what each depends on: {run}/metrics.json")
    return values


def used(config: DictConfig, metrics: dict[str, Any], run: Path) -> list[Any]:
    """What these scores are of, for the loggers' lineage."""
    from ldm.runtime.files import sha256
    from ldm.runtime.loggers import artifact

    found = []
    if config.samples is not None and (file := folder_of(config.samples) / "samples.npz").exists():
        found.append(artifact("samples", sha256(file), file.parent))
    if "reconstruction" in metrics:
        found.append(artifact("autoencoder", metrics["reconstruction"]["autoencoder"], run))
    return found


def compare(paths: list[str]) -> None:
    """Print what `--compare` is asked for; exit status 1 where a number may not be compared."""
    from ldm.evaluation.comparison import comparison, read

    try:
        lines, fair = comparison(*read(paths))
    except ValueError as error:
        sys.exit(f"ldm: error: {error}")
    print("\n".join(lines))
    sys.exit(0 if fair else 1)
