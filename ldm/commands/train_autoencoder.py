"""Stage 1: train the autoencoder on images."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import model_validator

from ldm.checkpoint import load_autoencoder, newest
from ldm.commands.next_step import data_overrides, say_next
from ldm.commands.options import Free, Group, Text, build
from ldm.commands.run_folder import build_loggers
from ldm.commands.training_options import Optimizer, ScheduleOptions, TrainingOptions
from ldm.data.sources import Digits, Source
from ldm.losses.alignment import LatentAlignment
from ldm.losses.autoencoder_loss import AutoencoderLoss
from ldm.losses.regularizer import NoRegularizer
from ldm.metrics.features import DenseFromFile, features_for, load_features
from ldm.metrics.reconstruction import ReconstructionMetrics
from ldm.models.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.runtime.arguments import Node, arguments_of
from ldm.runtime.loggers import artifact
from ldm.runtime.ranges import Positive, Share
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.console import final_figures
from ldm.training.curves import last_value
from ldm.training.data_modules import ImageData
from ldm.training.gradients import StepGuard
from ldm.training.health import Health
from ldm.training.pictures import LogitMaps, ReconstructionGrid
from ldm.training.progress import seed_from
from ldm.training.reconstruction_scores import ReconstructionScores
from ldm.training.resume import defaults_of
from ldm.training.run import Tracking, fit
from ldm.training.schedule import Schedule
from ldm.training.trainer import RankBatch

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


class AlignOptions(Group):
    """Of the latents' alignment with an encoder; features: a file of dense features, null: none."""

    features: Text | None
    weight: Positive
    cosine_margin: Share
    distance_margin: Share


class StageOneOptions(TrainingOptions):
    """conf/stage1.yaml: what trains an autoencoder, which `ldm probe` has as well."""

    data: Node
    autoencoder: Annotated[dict[str, Any], arguments_of(Autoencoder, "variational", "quantizer")]
    discriminator: Annotated[dict[str, Any], arguments_of(PatchDiscriminator)]
    loss: Annotated[dict[str, Any], arguments_of(AutoencoderLoss, "regularizer")]
    regularizer: Node
    align: AlignOptions
    trained: Literal["all", "decoder"]
    features: Annotated[Text | None, Free()]
    disc_schedule: ScheduleOptions
    disc_optimizer: Optimizer
    guard: Annotated[dict[str, Any], arguments_of(StepGuard), Free()]
    disc_guard: Annotated[dict[str, Any], arguments_of(StepGuard), Free()]
    health: Annotated[dict[str, Any], arguments_of(Health), Free()]

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.loss.get("r1", 0) > 0 and self.discriminator.get("norm") == "batch":
            raise ValueError("loss.r1 needs logits of one image each: pass discriminator.norm=group, spectral or none")
        measured = [f"val/{name}" for name in ("loss", "psnr", "ssim", "lpips", "l1", *["rfd"] * bool(self.features))]
        self.check_best(measured, "features= adds val/rfd")
        if self.trained == "decoder" and self.init is None:
            raise ValueError("trained=decoder needs an encoder that is trained already: pass init=RUN")
        if self.trained == "decoder" and self.align.features is not None:
            raise ValueError("align.features aligns what the encoder makes: leave it null with trained=decoder")
        self._check_trainer()
        health = self.health
        reach, wanted = (self.keep - 1) * self.every, max(health["window"], health["chance"])
        if health["rollbacks"] > 0 and reach < wanted:
            raise ValueError(
                "health.rollbacks needs a checkpoint from before a collapse: "
                f"(keep={self.keep} - 1) x every={self.every} batches must reach back "
                f"health.window={health['window']} and health.chance={health['chance']}"
            )
        return self

    def _check_trainer(self) -> None:
        """ValueError for what two optimisers, or a loss of the decoder's own gradients, can't have."""
        trainer = self.trainer
        if trainer.compile:
            raise ValueError(
                "stage 1 differentiates its decoder twice, which compiled code can't: pass trainer.compile=false"
            )
        if (trainer.model_extra or {}).get("gradient_clip_val") is not None:
            raise ValueError(
                "trainer.gradient_clip_val is for one optimiser; stage 1 has two: pass guard.clip= and disc_guard.clip="
            )
        if trainer.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision={trainer.precision} must be one of {', '.join(PRECISIONS)}")
        if trainer.strategy == "fsdp":
            raise ValueError(
                "trainer.strategy=fsdp is for stage 2: the adaptive weight takes gradients of the last layer's weight, "
                "which FSDP leaves on no rank as a whole, and an autoencoder fits a GPU: pass trainer.strategy=ddp"
            )


class TrainAutoencoder(StageOneOptions):
    """conf/train_autoencoder.yaml.

    probe:  what an experiment of `ldm probe`, which calls this command, says to the commands that follow it
    """

    probe: Annotated[dict[str, Any] | None, Free()] = None


def main(options: TrainAutoencoder, run: Path) -> float | None:
    source: Source = build(options.data)
    seed_from(options.seed)
    regularizer: NoRegularizer = build(options.regularizer)
    shape = shape_of(options, regularizer)
    autoencoder = Autoencoder(**shape)
    discriminator = PatchDiscriminator(**options.discriminator)
    loss = AutoencoderLoss(**options.loss, regularizer=regularizer)
    check_sizes(source, autoencoder, discriminator if loss.disc_weight > 0 else None, regularizer)
    if options.init is not None and newest(run) is None:  # else the run has weights of its own
        start_from(options.init, autoencoder, shape)
    batch = options.batch_of_a_rank()
    alignment = alignment_of(options, source.resolution)
    module = module_of(options, batch, autoencoder, discriminator, loss, source.preprocessing(), alignment)
    fit(
        module,
        ImageData(
            source=source,
            batch=batch,
            num_workers=options.num_workers,
            seed=options.seed,
            overfit=options.overfit,
        ),
        options.plan(run),
        networks=[autoencoder.encoder, autoencoder.decoder, discriminator],
        callbacks=[scores(options, source), ReconstructionGrid(), LogitMaps()],
        tracking=Tracking(
            loggers=build_loggers(options.logger, run),
            used=[],
            made=lambda: artifact("autoencoder", load_autoencoder(run).fingerprint, run),
        ),
        begin=lambda: options.begin(run),
    )
    source.report_skipped()
    print(f"autoencoder in {run}: {final_figures(run)} (curves.png, reconstructions/, metrics.csv)")
    say_next("cache-latents", f"autoencoder={run}", *data_overrides(options.data))
    return last_value(run, options.returns)


def module_of(
    options: StageOneOptions,
    batch: RankBatch,
    autoencoder: Autoencoder,
    discriminator: PatchDiscriminator,
    loss: AutoencoderLoss,
    preprocessing: dict[str, Any],
    alignment: LatentAlignment | None = None,
) -> AutoencoderModule:
    """What Lightning trains."""
    return AutoencoderModule(
        autoencoder=autoencoder,
        discriminator=discriminator,
        loss=loss,
        optimizer=build(options.optimizer),
        disc_optimizer=build(options.disc_optimizer),
        schedules={
            "lr": Schedule(steps=options.steps, **options.schedule),
            "disc_lr": Schedule(steps=max(1, options.steps - loss.disc_start), **options.disc_schedule),
        },
        accumulate=batch.parts,
        trained=options.trained,
        guard=StepGuard(**options.guard),
        disc_guard=StepGuard(**options.disc_guard),
        health=Health(**options.health),
        alignment=alignment,
        seed=options.seed,
        batch_size=batch.size,
        lr_per_image=options.lr_per_image,
        card={
            "kind": "autoencoder",
            "autoencoder": shape_of(options, loss.regularizer),
            "preprocessing": preprocessing,
            "config": options.plain(),
            **({} if alignment is None else {"aligned": alignment.encoder[0].identity}),
        },
    )


def alignment_of(options: StageOneOptions, resolution: int) -> LatentAlignment | None:
    """What aligns the latents with the features of the file that align.features names."""
    if options.align.features is None:
        return None
    example = torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8)
    encoder = DenseFromFile(Path(options.align.features), example, key="align.features").eval()
    return LatentAlignment(
        encoder=encoder,
        latent_channels=options.autoencoder["latent_channels"],
        channels=encoder.num_features,
        **options.align.model_dump(exclude={"features"}),
    )


def shape_of(options: StageOneOptions, regularizer: NoRegularizer) -> dict[str, Any]:
    """The arguments of `Autoencoder`."""
    return options.autoencoder | {"variational": regularizer.variational, "quantizer": regularizer.quantizer}


def check_sizes(
    source: Source, autoencoder: Autoencoder, discriminator: PatchDiscriminator | None, regularizer: NoRegularizer
) -> None:
    """ValueError where the images' resolution does not suit a network that sees them."""
    factor = autoencoder.downsample_factor
    if source.resolution % factor:
        raise ValueError(f"data.resolution={source.resolution} is not a multiple of the autoencoder's factor {factor}")
    least = source.resolution * regularizer.smallest_scale
    needs = {"LPIPS": 16} | ({} if discriminator is None else {"the discriminator": discriminator.min_size})
    for what, pixels in needs.items():
        if least < pixels:
            scaled = " times regularizer.min_scale" if least < source.resolution else ""
            raise ValueError(f"data.resolution={source.resolution}{scaled} is too small: {what} needs {pixels} pixels")


def start_from(path: str, autoencoder: Autoencoder, shape: dict[str, Any]) -> None:
    """Copy a trained or imported autoencoder's weights."""
    loaded = load_autoencoder(path)
    defaults = defaults_of(Autoencoder)
    given, wanted = defaults | loaded.card["autoencoder"], defaults | shape
    if given["variational"] != wanted["variational"]:
        raise ValueError(
            f"init={path} is {'not ' * (not given['variational'])}variational: choose regularizer= likewise"
        )
    if given["quantizer"] != wanted["quantizer"]:
        raise ValueError(f"init={path} has the quantiser {given['quantizer']}: choose regularizer= likewise")
    wrong = [f"'autoencoder.{key}={given[key]}'".replace(" ", "") for key in given if given[key] != wanted[key]]
    if wrong:
        raise ValueError(f"init={path} has another shape: pass {' '.join(wrong)}")
    autoencoder.load_state_dict(loaded.model.state_dict())


def scores(options: StageOneOptions, source: Source) -> ReconstructionScores:
    """The callback that measures reconstructions, rFD with options.features; LPIPS is among the loss's own terms."""
    name = features_for(options.features, digits=isinstance(source, Digits))
    example = torch.zeros(2, 3, source.resolution, source.resolution, dtype=torch.uint8)
    features = load_features(name, example) if name is not None else None
    return ReconstructionScores(ReconstructionMetrics(None, features), options.autoencoder["latent_channels"])
