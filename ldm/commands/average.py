"""Averages of any width of a run that kept two, and which width is best."""

import logging
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field

from ldm.card import build_from_card
from ldm.checkpoint import AVERAGES, CARD, NET_PREFIX, averaged_file, export_diffusion, find, load_diffusion
from ldm.commands.options import Free, ResultOptions, Text
from ldm.commands.train_diffusion import Width
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.metrics.features import Extractor, load_features
from ldm.runtime.files import atomic_write
from ldm.runtime.ranges import Count, Natural, Several
from ldm.runtime.ranks import pick_device
from ldm.runtime.schema import Finite, JsonFile
from ldm.training.examples import examples_of
from ldm.training.power_averages import averaged
from ldm.training.sample_quality import Judges, SampleQuality
from ldm.weights import part_of

log = logging.getLogger(__name__)
FAR = 0.05  # of an average from that of its width, where that is said


class AverageOptions(ResultOptions):
    """conf/average.yaml, which says what each key means."""

    model: Text
    sigma_rel: Annotated[list[Width], Field(min_length=1)]
    latents: Text | None
    features: Text | None
    scored: Several
    batch_size: Annotated[Count, Free()]
    device: Annotated[str, Free()]


class WidthsFile(JsonFile):
    """averages.json: what the averages of a run are, and, where samples were scored, what of.

    widths:  the Frechet distance of each width's samples; null where none was measured
    apart:   how far each average is from that of its width, as a share
    updates: after which they stand
    judged:  what the distances depend on
    """

    fix: ClassVar[str] = "run ldm average again"

    model: str
    updates: Natural
    widths: dict[str, Finite | None]
    apart: dict[str, Finite]
    judged: dict[str, Any]


def main(options: AverageOptions, run: Path) -> None:
    model = Path(options.model)
    file, checkpoint = find(model, "diffusion")
    if not model.is_dir():
        raise ValueError(f"model={model} is a file: name the run's folder, in which its averages lie")
    card = checkpoint[CARD]
    net = build_from_card({"net": card["net"]}, options.trust, named_in=str(file))["net"]
    made = {width: averaged(model, width) for width in options.sigma_rel}
    quality = None if options.features is None else judges_of(options, card)
    options.begin(run)
    for width, (state, _, apart) in made.items():
        if apart > FAR:
            log.warning(
                "sigma_rel=%g: the average is %.0f %% away from that of this width: save more often (every=)",
                width,
                100 * apart,
            )
        net.load_state_dict(part_of(checkpoint["state_dict"], NET_PREFIX) | state)
        export_diffusion(net, card, averaged_file(model, width, there=False))
    distances: dict[float, float | None] = dict.fromkeys(made)
    judged: dict[str, Any] = {}
    if quality is not None:
        for width in distances:
            distances[width], judged = quality(width)
            print(f"sigma_rel={width:g}: FD {distances[width]:.4g}")
        draw(run / "fd.png", {width: value for width, value in distances.items() if value is not None})
    updates = next(iter(made.values()))[1]
    widths = {f"{width:g}": value for width, value in distances.items()}
    apart_by_width = {f"{width:g}": far for width, (_, _, far) in made.items()}
    WidthsFile(model=str(model), updates=updates, widths=widths, apart=apart_by_width, judged=judged).write(
        run / "averages.json"
    )
    print(f"{len(made)} averages after {updates} updates in {model / AVERAGES}: weights={options.sigma_rel[0]:g}, ...")


def judges_of(options: AverageOptions, card: dict[str, Any]) -> Any:
    """(width) -> the Frechet distance of its samples, and what that depends on."""
    device = pick_device(options.device)
    latents = options.latents or card["config"]["latents"]
    if latents is None:
        raise ValueError(
            f"{options.model} encoded its images on the fly: pass latents=, a cache of the same autoencoder"
        )
    cache = LatentCache(str(latents), "once")
    _, autoencoder = load_stages(options.model, "ema", None, options.trust)
    side = cache.latent_shape[-1] * autoencoder.model.downsample_factor
    features: Extractor = load_features(str(options.features), torch.zeros(2, 3, side, side, dtype=torch.uint8))
    reference: list[Any] = [None]

    def measure(width: float) -> tuple[float, dict[str, Any]]:
        stage2 = load_diffusion(options.model, width, options.trust)
        generator = LatentDiffusionModel.of(stage2, autoencoder, device).generator(seed=options.seed)
        quality = SampleQuality(
            generator=generator,
            num=options.scored,
            batch_size=options.batch_size,
            judges=Judges(features=features, reference=None, classifier=None),
            latents=CachedMoments(cache, "train"),
            examples=examples_of(generator, cache),
        )
        quality.reference = reference[0]
        with torch.no_grad():
            found = quality.measured(device)
        reference[0] = quality.reference
        return found["fd"], quality.stamp() | {"weights": "each width"}

    return measure


def draw(file: Path, distances: dict[float, float]) -> None:
    """The Frechet distance against the width."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    widths = sorted(distances)
    axis.plot(widths, [distances[width] for width in widths], marker="o")
    axis.set(xlabel="width of the average, sigma_rel", ylabel="Frechet distance of samples")
    with atomic_write(file) as stream:
        figure.savefig(stream, dpi=100)
