"""Generate images with a trained model: samples.npz, grid.png, trajectory.png, sample.json."""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval, Le, Len
from pydantic import Field, model_validator
from torch import Tensor

from ldm.card import check_guidance, usual_guidance
from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion, load_diffusion
from ldm.commands.options import Free, GridChoice, LoggedOptions, ResultOptions, SamplerOptions, Text, Weights, build
from ldm.commands.run_folder import build_loggers
from ldm.commands.sample_files import save_files, save_samples, strips, wanted_of
from ldm.condition import Condition
from ldm.data.picture_files import Pictures
from ldm.diffusion.guidance import Guidance
from ldm.evaluation.result_files import STAMP, SampleStamp, which_weights
from ldm.generate.generator import STRENGTH, Generator, Origin
from ldm.generate.interpolation import check_interpolates
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, class_rows, grid, save_png, strip
from ldm.runtime.arguments import Choice
from ldm.runtime.bars import track
from ldm.runtime.files import sha256
from ldm.runtime.loggers import artifact, record
from ldm.runtime.memory import check_batch, check_fits
from ldm.runtime.ranges import Count, NonNegative, Share
from ldm.runtime.ranks import gather, join_ranks, pick_device, precision

Side = Annotated[Count, Le(2048)]
LatentSize = Side | Annotated[list[Side], Len(2, 2)] | None


class SampleOptions(ResultOptions, LoggedOptions):
    """conf/sample.yaml, which says what each key means."""

    model: Text
    autoencoder: Text | None
    sampler: SamplerOptions
    grid: GridChoice
    path: Choice
    num: Count
    start: Text | None = Field(alias="from")
    strength: Annotated[float, Interval(gt=0, le=1)] | None
    latent_size: LatentSize
    classes: list[str | int] | str | int | None
    prompts: list[str] | str | None
    text_encoder: Annotated[Text | None, Free()]
    weights: Weights
    guidance: NonNegative | None
    guidance_interval: tuple[Share, Share]
    guidance_rescale: Share
    weak: Text | None
    batch_size: Annotated[Count, Free()]
    device: Annotated[str, Free()]
    files: Annotated[bool, Free()]
    interpolation: Annotated[int, Interval(ge=0, le=64), Free()]

    @model_validator(mode="after")
    def _from_one_to_another(self) -> Self:
        if self.interpolation == 1:
            raise ValueError("interpolation=1 has no way between its ends: pass 2 or more, or 0 for none")
        return self

    @model_validator(mode="after")
    def _guided(self) -> Self:
        unused = [key for key, off in (("weak", None), ("guidance_rescale", 0)) if getattr(self, key) != off]
        if self.guidance == 1 and unused:
            value = getattr(self, unused[0])
            raise ValueError(f"guidance=1 is unguided, so that {unused[0]}={value} would do nothing")
        return self


def main(options: SampleOptions, run: Path) -> None:
    device = pick_device(options.device)
    loaded, autoencoder = load_stages(options.model, options.weights, options.autoencoder, options.trust)
    weak = load_weak(options, loaded)
    model = LatentDiffusionModel.of(loaded, autoencoder, device).read_by(options.text_encoder)
    generator = planned(options, loaded.card, model, guidance_of(options, loaded, weak, device))
    wanted = wanted_of(options, loaded.card, generator.model)
    options.keep_others(run)
    samples, evaluations = drawn(generator, wanted.told, options.num, options.batch_size)
    if samples is None:  # on every rank but the first
        return
    options.begin(run)  # now that there are results: config.yaml describes what lies beside it
    save_samples(run / "samples.npz", samples, wanted.told.turn(range(options.num)).label)
    stamp = stamp_of(options, loaded, autoencoder, weak, run) | {
        **generator.sampling.describe(),
        "guidance": generator.guidance.scale,  # guided, two networks are evaluated for an evaluation of the denoiser
        "classes": "all, in turn" if options.classes is None else model.labels(options.classes),
        "prompts": wanted.prompts,
        "evaluations": evaluations,
        "precision": precision(device),
    }
    SampleStamp(**stamp).write(run / STAMP)
    shown, columns, names = class_rows(samples, wanted.rows, wanted.names)
    save_png(run / "grid.png", annotate(grid(shown, columns), rows=names))
    save_png(run / "trajectory.png", strip(*generator.trajectory(wanted.told.rows([0]).to(device))))
    pictures = {"samples": run / "grid.png", "trajectory": run / "trajectory.png"}
    if options.interpolation:
        pictures["interpolation"] = run / "interpolation.png"
        save_png(pictures["interpolation"], strips(generator, wanted, options.interpolation))
    if options.files:
        save_files(run / "images", samples, wanted.rows, wanted.names)
    record(
        build_loggers(options.logger, run),
        options.plain(),
        used=[artifact("diffusion", loaded.fingerprint, loaded.run)],
        made=[artifact("samples", sha256(run / "samples.npz"), run)],
        pictures=pictures,
    )
    names = ["samples.npz", *(file.name for file in pictures.values()), STAMP, *["images/"] * options.files]
    print(f"{options.num} samples in {run}: {', '.join(names)}")


def planned(options: SampleOptions, card: dict[str, Any], model: LatentDiffusionModel, guidance: Guidance) -> Generator:
    """How the model is sampled; ValueError if the samples do not fit into memory."""
    if options.latent_size is not None:
        model = model.sized(options.latent_size)
    generator = model.generator(
        sampler=build(options.sampler.function),
        steps=options.sampler.steps,
        grid=build(options.grid),
        path=build(options.path),
        guidance=guidance,
        seed=options.seed,
        origin=origin_of(options, card, model),
    )
    if options.interpolation:
        check_interpolates(model)
    pixels = 3 * math.prod(model.image_size)
    check_fits(2 * options.num * pixels, f"num={options.num}", "lower num=, and sample several times by seed=")
    check_batch(options.batch_size, pixels)
    return generator


def origin_of(options: SampleOptions, card: dict[str, Any], model: LatentDiffusionModel) -> Origin | None:
    """The pictures that samples start from, prepared as in training and encoded; None for noise."""
    if options.start is None:
        if options.strength is not None:
            raise ValueError(f"strength={options.strength:g} is of pictures to start from: pass from=")
        return None
    if options.interpolation:
        raise ValueError(f"from={options.start} leaves no noise to walk between: pass interpolation=0")
    height, width = model.image_size
    if height != width:
        raise ValueError(f"from={options.start} is cut to squares: pass latent_size= of one side")
    given = card["preprocessing"] or {}
    resize = round(given["resize"] * width / given["resolution"]) if given.get("resize") else None
    pictures = Pictures(options.start, width, resize, key="from")
    latents = [model.encode(pictures[i][1][None]) for i in range(min(len(pictures), options.num))]
    return Origin(latents=torch.cat(latents), strength=STRENGTH if options.strength is None else options.strength)


def load_weak(options: SampleOptions, loaded: LoadedDiffusion) -> LoadedDiffusion | None:
    """The weaker model of autoguidance, if any: see `check_weak`."""
    if options.weak is None:
        return None
    weak = load_diffusion(options.weak, options.weights, options.trust)
    check_weak(options.weak, weak, loaded)
    return weak


def check_weak(path: str, weak: LoadedDiffusion, strong: LoadedDiffusion) -> None:
    """ValueError if the weak model does not predict what the strong one predicts."""
    for key in ("latent_shape", "objective", "class_names", "condition"):
        if weak.card.get(key) != strong.card.get(key):
            raise ValueError(f"weak={path} was trained with another {key}, or on other latents")


def guidance_of(
    options: SampleOptions, loaded: LoadedDiffusion, weak: LoadedDiffusion | None, device: torch.device
) -> Guidance:
    """Guidance as the options say; ValueError where the model can't be guided so."""
    scale = usual_guidance(loaded.card) if options.guidance is None else options.guidance
    check_guidance(loaded.card, scale, weak=weak is not None)
    if scale == 1 and weak is not None:
        raise ValueError(f"guidance=1 is unguided, so that weak={options.weak} would do nothing: pass guidance=")
    return Guidance(
        scale=scale,
        interval=options.guidance_interval,
        rescale=options.guidance_rescale,
        weak=None if weak is None else weak.net.to(device),
    )


def drawn(generator: Generator, told: Condition, num: int, batch_size: int) -> tuple[Tensor | None, float]:
    """All samples, uint8 [N, 3, H, W], on rank 0 (None on the others), and the denoiser's evaluations for each."""
    device = generator.model.device
    rank, world = join_ranks()
    share = range(rank, num, world)
    batches = [share[i : i + batch_size] for i in range(0, len(share), batch_size)]
    images: list[Tensor] = []
    evaluations: list[int] = []  # of each sample: a solver of adaptive steps takes as many as its batch needs
    for indices in track(batches, "sampling", hidden=rank != 0):
        image, count = generator.images(indices, told.turn(indices).to(device))
        images.append(image.cpu())
        evaluations += [count] * len(indices)
    shares = gather((torch.cat(images) if images else None, evaluations))
    if rank != 0:
        return None, 0.0
    samples = torch.empty(num, *shares[0][0].shape[1:], dtype=torch.uint8)
    for i, (part, _) in enumerate(shares):
        if part is not None:  # with fewer samples than ranks, some have none
            samples[i::world] = part
    return samples, sum(sum(counts) for _, counts in shares) / num


def stamp_of(
    options: SampleOptions,
    loaded: LoadedDiffusion,
    autoencoder: LoadedAutoencoder,
    weak: LoadedDiffusion | None,
    run: Path,
) -> dict[str, Any]:
    """What the samples depend on, as far as it is known before they are drawn; sample.json holds it."""
    given = options.plain()
    return {
        "sha256": sha256(run / "samples.npz")[:16],
        "model": loaded.fingerprint,
        "model_path": os.path.relpath(Path(options.model).resolve(), run.resolve()),
        "autoencoder": autoencoder.fingerprint,
        "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
        "num": options.num,
        "class_names": loaded.card["class_names"],
        "preprocessing": loaded.card["preprocessing"],
        "weights": which_weights(options.weights),
        "path": given["path"] or "as trained",
        "guidance_interval": given["guidance_interval"],
        "guidance_rescale": options.guidance_rescale,
        "weak": None if weak is None else weak.fingerprint,
        "seed": options.seed,
        "latent_size": given["latent_size"],
        "start": None if options.start is None else {"from": options.start, "strength": options.strength or STRENGTH},
        "batches_trained": loaded.card["batches_seen"],
        "student": loaded.card.get("student"),
    }
