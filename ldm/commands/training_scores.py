"""What judges the samples of a training at each validation."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ldm.data.encoded_images import Latents
from ldm.generate.generator import Generator
from ldm.metrics.classifier import FileClassifier
from ldm.metrics.features import load_features
from ldm.metrics.statistics import known_statistics
from ldm.training.examples import Examples
from ldm.training.sample_quality import Judges, SampleQuality

if TYPE_CHECKING:
    from ldm.commands.train_diffusion import TrainDiffusionOptions


def sample_quality(
    options: "TrainDiffusionOptions", generator: Generator, cache: Latents, examples: Examples
) -> list[SampleQuality]:
    """The callback that scores samples at each validation, if anything is to judge them."""
    model = generator.model
    example = torch.zeros(2, 3, model.resolution, model.resolution, dtype=torch.uint8)
    features = None if options.features is None else load_features(options.features, example)
    classifier = None
    if options.classifier is not None:
        if not Path(options.classifier).suffix:
            raise ValueError(f"classifier={options.classifier} is no file: name a TorchScript .pt or torch.export .pt2")
        classifier = FileClassifier(Path(options.classifier), example, len(cache.class_names))
    reference = None
    if options.reference is not None:
        reference = known_statistics(Path(options.reference)).get("features")
        if reference is None:
            raise ValueError(f"reference={options.reference} is no .npz of statistics (mu, sigma): name one")
    judges = Judges(features=features, reference=reference, classifier=classifier)
    if features is None and classifier is None:
        return []
    return [
        SampleQuality(
            generator=generator,
            num=options.scored,
            batch_size=options.batch_size,
            judges=judges,
            latents=cache.few("train"),
            examples=examples,
        )
    ]
