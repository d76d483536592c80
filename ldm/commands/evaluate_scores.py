"""The scores that `ldm evaluate` is asked for, and the checks of what they need, before anything is computed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import LoadedAutoencoder, load_autoencoder, load_diffusion, matching_autoencoder
from ldm.commands.evaluate_options import EvaluateOptions
from ldm.commands.options import build
from ldm.data.sources import Digits, Source
from ldm.evaluation.bits_per_dim import BitsPerDim
from ldm.evaluation.image_sets import ArraySet, ImageSet, SourceSet, holds_images, open_set
from ldm.evaluation.model_scores import HeldOutLikelihood, HeldOutReconstruction
from ldm.evaluation.sample_scores import ClassAccuracy, FeatureScores, Memorisation, Score
from ldm.losses.perceptual import PerceptualLoss
from ldm.metrics.classifier import Classifier, FileClassifier, PixelClassifier
from ldm.metrics.features import Extractor, Inception, features_for, load_features
from ldm.metrics.statistics import Statistics, known_statistics
from ldm.runtime.ranks import precision

PICTURE = "neighbours.png"
STEPS_OF_CODES = 64  # numbers of hidden places at which the bound of codes is estimated, at most


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, of what.

    options:    the command's
    run:        the folder that results go to
    source:     data: the real images
    samples:    what is scored; None: an autoencoder alone
    reference:  the real images that they are compared with; None: statistics alone
    known:      statistics of a reference; {}: none are given
    stamp:      what `ldm sample` says of the samples; {} of all others
    folder:     what paths in the stamp are relative to
    extractor:  of features; None: none are wanted
    device:     where networks run
    """

    options: EvaluateOptions
    run: Path
    source: Source
    samples: ImageSet | None
    reference: ImageSet | None
    known: dict[str, Statistics]
    stamp: dict[str, Any]
    folder: Path
    extractor: Extractor | None
    device: torch.device
    train: SourceSet = field(init=False)
    held_out: SourceSet = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", SourceSet(self.source, ("train",)))
        object.__setattr__(self, "held_out", SourceSet(self.source, ("val",)))


def request(options: EvaluateOptions, run: Path, source: Source, device: torch.device) -> Request:
    """Open the samples and the extractor.

    Raises:
        ValueError: if there are no such samples, or if data are not what their model was trained on.
    """
    samples = None if options.samples is None else open_set(Path(options.samples), source, "samples")
    stamp = {} if samples is None else samples.stamp
    check_data(options, stamp, source)
    features = options.features
    if features == "auto" and options.reference is not None and stamp.get("preprocessing") != source.preprocessing():
        features = "inception"  # data may be the digits by default alone
    reference, known = reference_of(options, source)  # before features are loaded, which may take long
    name = features_for(features, digits=isinstance(source, Digits))
    return Request(
        options=options,
        run=run,
        source=source,
        samples=samples,
        reference=reference,
        known=known,
        stamp=stamp,
        folder=run if options.samples is None else folder_of(options.samples),
        extractor=None if name is None else load_features(name, example(source)).to(device),
        device=device,
    )


def reference_of(options: EvaluateOptions, source: Source) -> tuple[ImageSet | None, dict[str, Statistics]]:
    """The images to compare with, and statistics that are known of them."""
    if options.reference is None:
        return SourceSet(source, ("train",)), {}
    path = Path(options.reference)
    known = known_statistics(path)
    return None if known and not holds_images(path) else open_set(path, source, "reference"), known


def folder_of(samples: str) -> Path:
    """The run folder that a run, or its samples.npz, lies in: what paths in its stamp are relative to."""
    return Path(samples).parent if Path(samples).suffix == ".npz" else Path(samples)


def example(source: Source) -> Tensor:
    """Two images of the source's size, for networks in files to be tried on."""
    return torch.zeros(2, 3, source.resolution, source.resolution, dtype=torch.uint8)


def check_data(options: EvaluateOptions, stamp: dict[str, Any], source: Source) -> None:
    """Hold data to what the samples' model was trained on, where a score compares the two."""
    trained_on = stamp.get("class_names", source.class_names)
    by_reference_alone = options.of_samples == ["reference"] and not options.reconstruction
    if trained_on != source.class_names and not by_reference_alone:
        raise ValueError(
            f"the samples' model was trained on the classes {trained_on}, data has {source.class_names}: pass data="
        )
    if options.reference is None or options.memorisation or options.reconstruction:
        compare_preparation(stamp.get("preprocessing") or {}, source, refuse=bool(options.memorisation))


def compare_preparation(trained_on: dict[str, Any], source: Source, refuse: bool) -> None:
    """Say where data is prepared in another way than what the samples' model has seen; ValueError where that would
    pass copies for new images."""
    prepared = source.preprocessing()
    # an imported model knows its resolution alone
    unlike = [key for key in trained_on if trained_on[key] != prepared.get(key)]
    if unlike:
        said = " ".join(f"data.{key}={trained_on[key]} (now {prepared.get(key)})" for key in unlike)
        said = f"the samples' model was trained on images of {said}"
        if refuse:
            raise ValueError(f"{said}: memorisation needs the same ones")
        print(f"{said}: its samples are compared with other crops")


def chosen(asked: Request) -> list[Score]:
    """The scores that are asked for; ValueError where one lacks what it needs, or where there is none."""
    makers = (feature_scores, class_accuracy, memorisation, reconstruction, likelihood)
    scores: list[Score] = [score for maker in makers if (score := maker(asked)) is not None]
    for node in asked.options.scores.values():
        scores.append(build(node | {"_partial_": True})(samples=asked.samples, held_out=asked.held_out))
    if not scores:
        raise ValueError("nothing to score: pass features=, classifier= or reconstruction=true")
    return scores


def feature_scores(asked: Request) -> FeatureScores | None:
    """Distances between the features of samples and of a reference."""
    options = asked.options
    if asked.samples is None or asked.extractor is None:
        return None
    for key, images in (("samples", asked.samples), ("reference", asked.reference)):
        if isinstance(images, ArraySet) and len(images.images) < 2 and not (key == "reference" and asked.known):
            raise ValueError(
                f"{key}={getattr(options, key)} has one image, and a Frechet distance needs two a side: name more, or "
                "pass features=null"
            )
    in_order = isinstance(asked.samples, ArraySet) and isinstance(asked.extractor, Inception)
    if options.inception_splits == "adm" and not in_order:
        raise ValueError(
            "inception_splits=adm wants features=inception, and samples in an .npz, whose order it keeps: pass "
            "inception_splits=shuffled"
        )
    return FeatureScores(
        samples=asked.samples,
        reference=asked.reference,
        known=asked.known,
        extractor=asked.extractor,
        folder=None if options.statistics is None else Path(options.statistics),
        keep=options.keep,
        neighbours=options.neighbours.model_dump(),
        precision=precision(asked.device),
        seed=options.seed,
        inception_splits=options.inception_splits,
    )


def class_accuracy(asked: Request) -> ClassAccuracy | None:
    """Whether a classifier gives samples their own labels."""
    name = asked.options.classifier
    if asked.samples is None or name is None:
        return None
    check_labels(str(asked.options.samples), asked.samples, asked.source.class_names)
    classifier = build_classifier(name, asked.train, asked.device)
    return ClassAccuracy(samples=asked.samples, held_out=asked.held_out, classifier=classifier)


def check_labels(name: str, samples: Any, class_names: list[str]) -> None:
    """ValueError where a classifier of these classes can't tell which samples are right."""
    if isinstance(samples, ArraySet):
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


def build_classifier(name: str, train: SourceSet, device: torch.device) -> Classifier:
    """ "svc", trained on the training images, or a file."""
    if name != "svc":
        return FileClassifier(Path(name), example(train.source), len(train.source.class_names)).to(device)
    if not isinstance(train.source, Digits):
        raise ValueError("classifier=svc is for the digits only: name a file of logits")
    images, labels = zip(*train.batches(1000, 0, 0, 1), strict=True)
    return PixelClassifier(torch.cat(images), torch.cat(labels))


def memorisation(asked: Request) -> Memorisation | None:
    """Whether samples are copies of training images."""
    if asked.samples is None or asked.extractor is None or not asked.options.memorisation:
        return None
    return Memorisation(
        samples=asked.samples,
        train=asked.train,
        held_out=asked.held_out,
        extractor=asked.extractor,
        num=asked.options.memorisation,
        picture=asked.run / PICTURE,
    )


def reconstruction(asked: Request) -> HeldOutReconstruction | None:
    """How well the autoencoder keeps held-out images."""
    options = asked.options
    if not options.reconstruction:
        return None
    autoencoder = its_autoencoder(asked)
    weights = options.lpips
    if weights == "auto":  # those that it was trained with; an imported one was trained elsewhere
        weights = autoencoder.card["config"].get("loss", {}).get("perceptual_pretrained")
        if weights is None:
            print("reconstruction lpips: left out, as this autoencoder names no VGG16: pass lpips=true or false")
    return HeldOutReconstruction(
        autoencoder=autoencoder,
        held_out=asked.held_out,
        extractor=asked.extractor,
        perceptual=None if weights is None else PerceptualLoss(pretrained=weights, key="lpips"),
        tile=options.tile,
    )


def its_autoencoder(asked: Request) -> LoadedAutoencoder:
    """The one that the samples were decoded with, or the one that is given."""
    given, stamp = asked.options.autoencoder, asked.stamp
    if "autoencoder" in stamp:
        return matching_autoencoder(given, stamp["autoencoder_path"], asked.folder, stamp["autoencoder"])
    if given is None:
        raise ValueError("no samples name an autoencoder: pass autoencoder=PATH, or reconstruction=false")
    return load_autoencoder(given)


def likelihood(asked: Request) -> HeldOutLikelihood | None:
    """Bits per dimension under the model that made the samples."""
    if not asked.options.likelihood:
        return None
    stamp = asked.stamp
    if "model_path" not in stamp:
        raise ValueError("likelihood is of samples that name their model: a run of `ldm sample`")
    place = asked.folder / stamp["model_path"]
    model = load_diffusion(place, stamp["weights"], asked.options.trust)
    if model.fingerprint != stamp["model"]:
        raise ValueError(f"{place} is no longer the model that these samples are from")
    autoencoder = its_autoencoder(asked)
    options = asked.options
    return HeldOutLikelihood(
        bits=BitsPerDim(
            model=model,
            autoencoder=autoencoder,
            source=asked.source,
            num=options.likelihood,
            seed=options.seed,
            options={"steps": STEPS_OF_CODES} if model.objective.of_codes else {},
        )
    )
