"""Draw a teacher's samples once, with the noise that each was made from, for a student to learn from (Reflow)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.card import check_guidance, usual_guidance
from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.commands.cache_latents import SlicedOptions, report, write_share
from ldm.commands.next_step import say_next
from ldm.commands.options import GridChoice, SamplerOptions, Text, build
from ldm.conditioning.labels import Labels
from ldm.data.formats import CacheIdentity, Pairs
from ldm.data.pair_writer import PairWriter
from ldm.generate.generator import Generator
from ldm.generate.loading import load_stages
from ldm.generate.model import LatentDiffusionModel
from ldm.runtime.loggers import artifact
from ldm.runtime.ranges import Count, Natural, NonNegative
from ldm.runtime.ranks import pick_device


class CachePairsOptions(SlicedOptions):
    """conf/cache_pairs.yaml, which says what each key means."""

    teacher: Text
    autoencoder: Text | None
    sampler: SamplerOptions
    grid: GridChoice
    guidance: NonNegative | None
    num: Count
    held_out: Natural


def main(options: CachePairsOptions, run: Path) -> None:
    teacher, autoencoder = load_stages(options.teacher, "ema", options.autoencoder, options.trust)
    guidance = usual_guidance(teacher.card) if options.guidance is None else options.guidance
    check_guidance(teacher.card, guidance, weak=False)
    model = LatentDiffusionModel.of(teacher, autoencoder, pick_device(options.device))
    if model.of_codes:
        raise ValueError(f"teacher={options.teacher} makes codes, and pairs are of latents: choose another")
    check_teacher(options.teacher, model)
    generator = model.generator(
        sampler=build(options.sampler.function),
        steps=options.sampler.steps,
        grid=build(options.grid),
        guidance=guidance,
        seed=options.seed,
    )
    if generator.draws_noise():
        raise ValueError(
            "the sampler draws noise on its way, so that a sample is not of its first noise alone: pass one that draws "
            "none, as sampler=euler"
        )
    writer = PairWriter(
        folder=run,
        identity=identity_of(options, teacher, autoencoder, generator, run),
        shard_size=options.shard_size,
        draw=drawing(generator),
        stats=teacher.stats,
        batch_size=options.batch_size,
    )
    manifest = write_share(writer, options, autoencoder, run)
    if manifest is not None:
        held = f"{options.num} + {options.held_out} pairs of {options.teacher}"
        print(f"{run}: {held}, guidance {guidance:g}, manifest.json")
        report(options, run, manifest, artifact("diffusion", teacher.fingerprint, teacher.run))
        say_next("train-diffusion", "run=reflow", "objective=reflow", f"latents={run}", f"init={options.teacher}")


def identity_of(
    options: CachePairsOptions,
    teacher: LoadedDiffusion,
    autoencoder: LoadedAutoencoder,
    generator: Generator,
    run: Path,
) -> CacheIdentity:
    """What all shards have in common: by it, a rerun sees that they are of the same pairs."""
    described: dict[str, Any] = generator.sampling.describe()
    return CacheIdentity(
        format=1,
        autoencoder=autoencoder.fingerprint,
        preprocessing=teacher.card["preprocessing"] or {},
        views=1,
        dtype="float16",
        class_names=list(teacher.card["class_names"]),
        pairs=Pairs(
            teacher=teacher.fingerprint,
            teacher_path=os.path.relpath(Path(options.teacher).resolve(), run.resolve()),
            sampler=described["sampler"],
            grid=described["grid"],
            guidance=generator.guidance.scale,
            seed=options.seed,
            train=options.num,
            val=options.held_out,
        ),
    )


def check_teacher(path: str, model: LatentDiffusionModel) -> None:
    """ValueError for a teacher of more than labels: a pair holds a latent and a label."""
    if not isinstance(model.conditioning, Labels):
        kind = type(model.conditioning).__name__
        raise ValueError(f"teacher={path} is told more than labels ({kind}), which pairs do not hold: ldm distill it")


def drawing(generator: Generator) -> Any:
    """indices -> raw latents [n, C, h, w], labels [n]: classes in turn."""
    model = generator.model

    def draw(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        labels = model.in_turn(None, max(indices) + 1)[list(indices)]
        latents, _ = generator.latents(list(indices), labels.to(model.device))
        return model.stats.denormalize(latents), labels

    return draw
