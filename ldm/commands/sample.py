"""Generate images with a trained model: samples.npz, grid.png, trajectory.png, sample.json."""

import io
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from annotated_types import Interval, Le, Len
from pydantic import Field, model_validator
from torch import Tensor

from ldm.card import check_guidance, usual_guidance
from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion, load_diffusion
from ldm.commands.options import Free, LoggedOptions, ResultOptions, SamplerOptions, Text, Weights, build
from ldm.commands.run_folder import build_loggers
from ldm.data.picture_files import Pictures
from ldm.diffusion.guidance import Guidance
from ldm.evaluation.result_files import STAMP, SampleStamp, which_weights
from ldm.generate.generator import STRENGTH, Generator, Origin
from ldm.generate.interpolation import interpolate
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, class_rows, grid, save_png, strip
from ldm.runtime.arguments import Choice
from ldm.runtime.bars import track
from ldm.runtime.files import TEMPORARY, atomic_write, sha256
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
    grid: Choice
    path: Choice
    num: Count
    start: Text | None = Field(alias="from")
    strength: Annotated[float, Interval(gt=0, le=1)] | None
    latent_size: LatentSize
    classes: list[str | int] | str | int | None
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
    model = LatentDiffusionModel.of(loaded, autoencoder, device)
    generator, labels = planned(options, model, guidance_of(options, loaded, weak, device))
    options.keep_others(run)
    samples, evaluations = drawn(generator, labels, options.batch_size)
    if samples is None:  # on every rank but the first
        return
    options.begin(run)  # now that there are results: config.yaml describes what lies beside it
    save_samples(run / "samples.npz", samples, labels)
    stamp = stamp_of(options, loaded, autoencoder, weak, run) | {
        **generator.sampling.describe(),
        "guidance": generator.guidance.scale,  # guided, two networks are evaluated for an evaluation of the denoiser
        "classes": "all, in turn" if options.classes is None else model.labels(options.classes),
        "evaluations": evaluations,
        "precision": precision(device),
    }
    SampleStamp(**stamp).write(run / STAMP)
    shown, columns, names = class_rows(samples, labels.tolist(), model.class_names)
    save_png(run / "grid.png", annotate(grid(shown, columns), rows=names))
    save_png(run / "trajectory.png", strip(*generator.trajectory(labels[:1].to(device))))
    pictures = {"samples": run / "grid.png", "trajectory": run / "trajectory.png"}
    if options.interpolation:
        pictures["interpolation"] = run / "interpolation.png"
        save_png(pictures["interpolation"], strips(generator, model.labels(options.classes), options.interpolation))
    if options.files:
        save_files(run / "images", samples, labels.tolist(), model.class_names)
    record(
        build_loggers(options.logger, run),
        options.plain(),
        used=[artifact("diffusion", loaded.fingerprint, loaded.run)],
        made=[artifact("samples", sha256(run / "samples.npz"), run)],
        pictures=pictures,
    )
    names = ["samples.npz", *(file.name for file in pictures.values()), STAMP, *["images/"] * options.files]
    print(f"{options.num} samples in {run}: {', '.join(names)}")


def strips(generator: Generator, classes: list[int], frames: int) -> Tensor:
    """A picture of ways between samples: a row from this seed's noise to the next's, of the first class, and a row from
    each class to the next at this seed's noise, up to nine."""
    seed, names = generator.seed, generator.model.class_names
    ways = [((seed, seed + 1), (classes[0], classes[0]), f"seed {seed}\nto {seed + 1}")]
    for a, b in pairwise(list(dict.fromkeys(classes))[:10]):
        ways.append(((seed, seed), (a, b), f"{names[a]}\nto {names[b]}"))
    rows = [interpolate(generator, seeds, labels, frames).cpu() for seeds, labels, _ in ways]
    return annotate(grid(torch.cat(rows), frames), rows=[name for *_, name in ways])


def save_files(folder: Path, samples: Tensor, labels: list[int], names: Sequence[str]) -> None:
    """Write images, uint8 [N, 3, H, W], as PNGs in a folder a class, in place of an earlier call's."""
    new = folder.with_name(f".{folder.name}{TEMPORARY}")
    shutil.rmtree(new, ignore_errors=True)
    places = folder_names(names)
    for i, (image, label) in enumerate(zip(samples, labels, strict=True)):
        save_png(new / places[label] / f"{i:06d}.png", image)
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder's name for each class: its own, but for what no folder can be called; of equal ones, with its number."""
    plain = [re.sub(r"[^\w .,()+-]", "_", name).strip(". ")[:100] or "_" for name in names]
    again = Counter(name.lower() for name in plain)  # some file systems know no upper case
    return [f"{name}-{i}" if again[name.lower()] > 1 else name for i, name in enumerate(plain)]


def planned(options: SampleOptions, model: LatentDiffusionModel, guidance: Guidance) -> tuple[Generator, Tensor]:
    """How the model is sampled and the labels [num] of the samples; ValueError if they do not fit into memory."""
    if options.latent_size is not None:
        model = model.sized(options.latent_size)
    generator = model.generator(
        sampler=build(options.sampler.function),
        steps=options.sampler.steps,
        grid=build(options.grid),
        path=build(options.path),
        guidance=guidance,
        seed=options.seed,
        origin=origin_of(options, model),
    )
    pixels = 3 * math.prod(model.image_size)
    check_fits(2 * options.num * pixels, f"num={options.num}", "lower num=, and sample several times by seed=")
    check_batch(options.batch_size, pixels)
    return generator, model.in_turn(options.classes, options.num)


def origin_of(options: SampleOptions, model: LatentDiffusionModel) -> Origin | None:
    """The pictures that samples start from, encoded; None for noise."""
    if options.start is None:
        if options.strength is not None:
            raise ValueError(f"strength={options.strength:g} is of pictures to start from: pass from=")
        return None
    if options.interpolation:
        raise ValueError(f"from={options.start} leaves no noise to walk between: pass interpolation=0")
    height, width = model.image_size
    if height != width:
        raise ValueError(f"from={options.start} is cut to squares: pass latent_size= of one side")
    pictures = Pictures(options.start, width, key="from")
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
    for key in ("latent_shape", "objective", "class_names"):
        if weak.card[key] != strong.card[key]:
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


def drawn(generator: Generator, labels: Tensor, batch_size: int) -> tuple[Tensor | None, float]:
    """All samples, uint8 [N, 3, H, W], on rank 0 (None on the others), and the denoiser's evaluations for each."""
    num, device = len(labels), generator.model.device
    rank, world = join_ranks()
    share = range(rank, num, world)
    batches = [share[i : i + batch_size] for i in range(0, len(share), batch_size)]
    images: list[Tensor] = []
    evaluations: list[int] = []  # of each sample: a solver of adaptive steps takes as many as its batch needs
    for indices in track(batches, "sampling", hidden=rank != 0):
        image, count = generator.images(indices, labels[list(indices)].to(device))
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


def save_samples(file: Path, samples: Tensor, labels: Tensor) -> None:
    """The .npz that the field's evaluators read: arr_0, uint8 [N, H, W, 3], and arr_1, labels [N]."""
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=samples.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    with atomic_write(file) as stream:
        stream.write(buffer.getvalue())


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
