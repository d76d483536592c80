"""Stage 2: train the diffusion or flow-matching network on cached latents."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from pydantic import AfterValidator, model_validator
from torch import nn

from ldm.card import build_from_card, check_guidance, check_trust, usual_guidance
from ldm.checkpoint import LoadedAutoencoder, load_diffusion, newest
from ldm.commands.next_step import say_next
from ldm.commands.options import Free, GridChoice, Group, ObjectiveOptions, SamplerOptions, Text, build
from ldm.commands.run_folder import build_loggers
from ldm.commands.students import (
    check_latents,
    condition_of,
    learned_of,
    load_teacher,
    net_of,
    reflow_card,
    schooling_of,
)
from ldm.commands.training_latents import (
    aligned_card,
    alignment_of,
    artifact_of,
    begin,
    check_codes,
    check_told,
    data_of,
    latents_of,
    training_device,
)
from ldm.commands.training_options import TrainingOptions
from ldm.commands.training_scores import sample_quality
from ldm.condition import Condition, labelled
from ldm.conditioning.labels import Conditioning, Labels
from ldm.data.cache_reader import Verify
from ldm.data.encoded_images import Latents
from ldm.diffusion.checks import checked_objective
from ldm.diffusion.coupling import OptimalTransport
from ldm.diffusion.objective import Objective
from ldm.diffusion.sampling import Sampling
from ldm.diffusion.student import Student
from ldm.generate.generator import Generator
from ldm.generate.model import LatentDiffusionModel
from ldm.latents import LatentStats
from ldm.losses.alignment import Alignment, Tap
from ldm.runtime.arguments import arguments_of, check_node
from ldm.runtime.loggers import artifact
from ldm.runtime.ranges import Count, Natural, NonNegative, Positive, Several, Share
from ldm.training.console import final_figures
from ldm.training.contract import SUPPLIED, check_network, check_sampling, supplied
from ldm.training.curves import last_value
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.examples import examples_of
from ldm.training.gradients import StepGuard
from ldm.training.pictures import SampleGrid
from ldm.training.power_function import WIDEST
from ldm.training.progress import seed_from
from ldm.training.run import Tracking, fit
from ldm.training.schedule import Schedule
from ldm.training.trainer import RankBatch

log = logging.getLogger(__name__)

ConditionNode = Annotated[dict[str, Any], AfterValidator(lambda node: check_node(node) if node else node)]
ImagesNode = ConditionNode  # {} where a cache has them
Width = Annotated[float, Interval(gt=0, le=WIDEST)]  # sigma_rel of an average
NetNode = Annotated[
    dict[str, Any], AfterValidator(lambda node: check_node(node, SUPPLIED) if node else node)
]  # {} is the teacher's


class AlignOptions(Group):
    """Of the alignment of a layer with features of the images; layer: which of net.blocks, null: none."""

    layer: Natural | None
    weight: Positive
    until: Count | None
    hidden: Count


class TrainDiffusionOptions(TrainingOptions):
    """conf/train_diffusion.yaml, which says what each key means."""

    latents: Annotated[Text | None, Free()]  # the card holds fingerprints of these two
    autoencoder: Annotated[Text | None, Free()]
    data: ImagesNode
    whiten: bool
    verify: Annotated[Verify, Free()]
    net: Annotated[NetNode, Free("checkpoint")]  # memory for time
    objective: Annotated[ObjectiveOptions, Free("sampling")]
    sampler: Annotated[SamplerOptions, Free()]
    grid: Annotated[GridChoice, Free()]
    condition: ConditionNode
    align: AlignOptions
    label_dropout: Share
    teacher: Annotated[Text | None, Free()]
    guidance: Annotated[NonNegative | None, Free()]
    power_ema: list[Width]
    features: Annotated[Text | None, Free()]
    classifier: Annotated[Text | None, Free()]
    reference: Annotated[Text | None, Free()]
    scored: Annotated[Several, Free()]
    guard: Annotated[dict[str, Any], arguments_of(StepGuard), Free()]
    rollbacks: Annotated[Natural, Free()]
    rollback_lr: Annotated[float, Interval(gt=0, le=1), Free()]

    @model_validator(mode="after")
    def _has_images_once(self) -> Self:
        if self.latents is not None and self.data:
            raise ValueError(f"latents={self.latents} have their images already: leave data= out, or pass latents=null")
        if self.latents is None and not (self.data and self.autoencoder):
            raise ValueError("latents=null encodes images while it trains: pass autoencoder=RUN, and data=")
        if self.whiten and (self.latents is not None or self.teacher is not None):
            raise ValueError("whiten=true is of latents=null without teacher=: else ldm cache-latents whiten=true")
        if self.latents is None and self.trainer.strategy == "fsdp":
            raise ValueError("trainer.strategy=fsdp validates in equal shares, of a cache alone: pass latents=RUN")
        return self

    @model_validator(mode="after")
    def _aligns_what_it_learns(self) -> Self:
        if self.align.layer is not None and self.objective.student is not None:
            raise ValueError("align.layer is of a network that learns from latents, not of a student: pass null")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        measured = ["val/loss", *["val/fd"] * bool(self.features), *["val/class_accuracy"] * bool(self.classifier)]
        self.check_best(measured, "features= adds val/fd, classifier= val/class_accuracy")
        return self

    @model_validator(mode="after")
    def _guidance_is_learned(self) -> Self:
        told = (self.objective.student or {}).get("guidance_max") is not None
        if self.guidance not in (1, None) and self.label_dropout == 0 and not told:
            raise ValueError(f"guidance={self.guidance:g} of the sample grids needs label_dropout > 0: pass guidance=1")
        return self


def main(options: TrainDiffusionOptions, run: Path) -> float | None:
    teacher = None if options.teacher is None else load_teacher(options)
    own_net, told_of = net_of(options, teacher), condition_of(options, teacher)
    check_trust([own_net, learned_of(options, teacher), options.objective.sampling, told_of], options.trust)
    sampling = Sampling(**build_from_card(options.objective.sampling, options.trust))
    unlearned = build_from_card(told_of, options.trust)
    objective = checked_objective(build_from_card(learned_of(options, teacher), options.trust))
    cache, autoencoder = latents_of(options, run, unlearned.reads, teacher)
    check_codes(options, cache)
    learned = learned_of(options, teacher, cache.codes)
    if cache.codes is not None:
        objective = checked_objective(build_from_card(learned, options.trust))
    told_of |= unlearned.learned(cache.kept())
    conditioning = build_from_card(told_of, options.trust)
    null = conditioning.null(len(cache.class_names), cache.latent_shape)
    if isinstance(objective.coupling, OptimalTransport) and not isinstance(conditioning, Labels):
        log.warning(
            "objective.coupling pairs noise with latents whatever is told of them, and a network then follows less "
            "what it is told: choose objective=flow"
        )
    schooling = schooling_of(options, objective, teacher, null, run)
    if teacher is not None:
        check_latents(f"teacher={options.teacher}", teacher.card, options.latents, cache)
    reflow = reflow_card(options, objective, cache, run)
    shape = supplied(own_net, cache.latent_shape, len(cache.class_names)) | schooling.net
    shape |= check_told(conditioning, cache) | ({} if cache.codes is None else {"codes": cache.codes})
    seed_from(options.seed)
    net: nn.Module = build_from_card(own_net | shape, options.trust)
    told = schooling.told(labelled(torch.tensor([0]), null).beside(null))
    tap = None if options.align.layer is None else Tap(net, options.align.layer)
    check_network(net, cache.latent_shape, objective, shape["num_classes"], training_device(options), told)
    alignment = alignment_of(options, tap, cache)
    if newest(run) is None:  # else the run has weights of its own
        schooling.start(options, net, teacher, cache)
    card = card_of(options, cache, autoencoder, run) | {
        "net": own_net | shape,
        "objective": learned,
        "condition": told_of,
    }
    card |= schooling.card | reflow | aligned_card(alignment, cache)
    if options.guidance is not None:
        check_guidance(card, options.guidance, weak=False)
    generator = generator_of(options, net, objective, sampling, conditioning, cache, autoencoder, usual_guidance(card))
    examples = examples_of(generator, cache)
    quality = sample_quality(options, generator, cache, examples)
    for judged in quality:
        judged.check_goes_on(run)
    batch = options.batch_of_a_rank()
    module = module_of(
        options, batch, net, objective, cache.stats, conditioning, null, card, schooling.student, alignment
    )
    fit(
        module,
        data_of(options, cache, objective.coupling, conditioning, batch),
        replace(options.plan(run), power_ema=options.power_ema),
        networks=[net],
        callbacks=[SampleGrid(generator, examples), *quality],
        tracking=Tracking(
            loggers=build_loggers(options.logger, run),
            used=[artifact_of(cache, autoencoder)],
            made=lambda: artifact("diffusion", load_diffusion(run, trust=options.trust).fingerprint, run),
        ),
        begin=lambda: begin(options, run, autoencoder),
    )
    print(f"diffusion model in {run}: {final_figures(run)} (curves.png, samples/, metrics.csv)")
    say_next("sample", f"model={run}", *([f"trust=[{','.join(options.trust)}]"] if options.trust else []))
    return last_value(run, options.returns)


def module_of(
    options: TrainDiffusionOptions,
    batch: RankBatch,
    net: nn.Module,
    objective: Objective,
    stats: LatentStats,
    conditioning: Conditioning,
    null: Condition,
    card: dict[str, Any],
    student: Student | None = None,
    alignment: Alignment | None = None,
) -> DiffusionModule:
    """What Lightning trains."""
    return DiffusionModule(
        net=net,
        objective=objective,
        stats=stats,
        conditioning=conditioning,
        null=null,
        label_dropout=options.label_dropout,
        optimizer=build(options.optimizer),
        guard=StepGuard(**options.guard),
        rollbacks=options.rollbacks,
        rollback_lr=options.rollback_lr,
        student=student,
        alignment=alignment,
        schedules={"lr": Schedule(steps=options.steps, **options.schedule)},
        seed=options.seed,
        accumulate=batch.parts,
        batch_size=batch.size,
        lr_per_image=options.lr_per_image,
        card=card,
    )


def card_of(
    options: TrainDiffusionOptions, cache: Latents, autoencoder: LoadedAutoencoder, run: Path
) -> dict[str, Any]:
    """What a checkpoint says of itself, but for its network."""
    return {
        "kind": "diffusion",
        "sampling": options.objective.sampling,
        "trust": list(options.trust),
        "label_dropout": options.label_dropout,
        "stats": cache.stats_card,
        "latent_shape": list(cache.latent_shape),
        "class_names": cache.class_names,
        "preprocessing": cache.preprocessing,
        "autoencoder": autoencoder.fingerprint,
        "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
        "config": options.plain(),
    }


def generator_of(
    options: TrainDiffusionOptions,
    net: nn.Module,
    objective: Objective,
    sampling: Sampling,
    conditioning: Conditioning,
    cache: Latents,
    autoencoder: LoadedAutoencoder,
    guidance: float,
) -> Generator:
    """How samples of the network as it is are drawn: for its grids and its scores."""
    model = LatentDiffusionModel(
        net=net,
        objective=objective,
        stats=cache.stats,
        autoencoder=autoencoder.model,
        latent_shape=cache.latent_shape,
        class_names=cache.class_names,
        sampling=sampling,
        conditioning=conditioning,
        scale=guidance,
    )
    generator = model.generator(
        sampler=build(options.sampler.function),
        steps=options.sampler.steps,
        grid=build(options.grid),
        seed=options.seed,
    )
    check_sampling(generator)
    return generator
