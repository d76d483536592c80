"""Stage 1: train the autoencoder on images."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.commands.entry import build, build_loggers, construct, plain, whole, write_config

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def main(config: DictConfig, run: Path) -> float | None:
    from ldm.checkpoint import load_autoencoder, newest
    from ldm.data.image_data import ImageData
    from ldm.losses.autoencoder_loss import AutoencoderLoss
    from ldm.models.autoencoder import Autoencoder
    from ldm.models.discriminator import PatchDiscriminator
    from ldm.runtime.loggers import artifact
    from ldm.training.autoencoder_module import AutoencoderModule
    from ldm.training.curves import last_value
    from ldm.training.gradients import StepGuard
    from ldm.training.health import Health
    from ldm.training.pictures import LogitMaps, ReconstructionGrid
    from ldm.training.progress import Schedule, seed_from
    from ldm.training.run import Plan, Tracking, fit

    source, steps = build(config.data), whole(config, "steps")
    seed_from(config.seed)
    regularizer = build(config.regularizer)
    shape = plain(config.autoencoder) | {"variational": regularizer.variational}
    autoencoder = construct(Autoencoder, shape, "autoencoder")
    discriminator = construct(PatchDiscriminator, config.discriminator, "discriminator")
    loss = construct(AutoencoderLoss, plain(config.loss) | {"regularizer": regularizer}, "loss")
    check(config, source, autoencoder, discriminator)
    if config.init is not None and newest(run) is None:  # else the run has weights of its own
        start_from(config.init, autoencoder, shape)
    module = AutoencoderModule(
        autoencoder=autoencoder,
        discriminator=discriminator,
        loss=loss,
        optimizer=build(config.optimizer),
        disc_optimizer=build(config.disc_optimizer),
        schedule=Schedule(steps=steps, **plain(config.schedule)),
        disc_schedule=Schedule(steps=max(1, steps - loss.disc_start), **plain(config.disc_schedule)),
        accumulate=whole(config, "accumulate"),
        trained=config.trained,
        guard=construct(StepGuard, config.guard, "guard"),
        disc_guard=construct(StepGuard, config.disc_guard, "disc_guard"),
        health=construct(Health, config.health, "health"),
        seed=config.seed,
        batch_size=whole(config, "batch_size"),
        lr_per_image=config.lr_per_image,
        card={
            "kind": "autoencoder",
            "autoencoder": shape,
            "preprocessing": source.preprocessing(),
            "config": plain(config),
        },
    )
    data = ImageData(source=source, batch_size=module.batch_size, num_workers=config.num_workers, seed=config.seed)
    fit(
        module,
        data,
        Plan(
            run=run,
            steps=steps,
            every=whole(config, "every"),
            keep=whole(config, "keep"),
            ema_decay=config.ema_decay,
            trainer=plain(config.trainer),
        ),
        networks=[autoencoder.encoder, autoencoder.decoder, discriminator],
        callbacks=[scores(config, source), ReconstructionGrid(), LogitMaps()],
        tracking=Tracking(
            loggers=build_loggers(config.logger, run),
            used=[],
            made=lambda: artifact("autoencoder", load_autoencoder(run).fingerprint, run),
        ),
        begin=lambda: write_config(config, run),
    )
    print(f"autoencoder in {run}: reconstructions/, logits/, curves.png, metrics.csv, checkpoints/")
    source.report_skipped()
    return last_value(run, config.returns)


def check(config: DictConfig, source: Any, autoencoder: Any, discriminator: Any) -> None:
    """Refuse what would fail, or be meaningless, batches later."""
    if config.trainer.compile:
        raise ValueError(
            "stage 1 differentiates its decoder twice, which compiled code can't: pass trainer.compile=false"
        )
    factor, accumulate = autoencoder.downsample_factor, whole(config, "accumulate")
    if source.resolution % factor:
        raise ValueError(f"data.resolution={source.resolution} is not a multiple of the autoencoder's factor {factor}")
    least = source.resolution * config.regularizer.get("min_scale", 1)
    needs = {"LPIPS": 16} | ({"the discriminator": discriminator.min_size} if config.loss.disc_weight > 0 else {})
    for what, pixels in needs.items():
        if least < pixels:
            scaled = " times regularizer.min_scale" if least < source.resolution else ""
            raise ValueError(f"data.resolution={source.resolution}{scaled} is too small: {what} needs {pixels} pixels")
    if config.batch_size % accumulate:
        raise ValueError(f"batch_size={config.batch_size} can't be divided into accumulate={accumulate} equal parts")
    if config.loss.r1 > 0 and config.discriminator.norm == "batch":
        raise ValueError("loss.r1 needs logits of one image each: pass discriminator.norm=group, spectral or none")
    for key, ours in (
        ("gradient_clip_val", "guard.clip= and disc_guard.clip="),
        ("accumulate_grad_batches", "accumulate="),
    ):
        if config.trainer.get(key) is not None:
            raise ValueError(f"trainer.{key} is for one optimiser; stage 1 has two: pass {ours}")
    if config.trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={config.trainer.precision} must be one of {', '.join(PRECISIONS)}")
    if config.trainer.strategy == "fsdp":
        raise ValueError(
            "trainer.strategy=fsdp is for stage 2: the adaptive weight takes gradients of the last layer's weight, "
            "which FSDP leaves on no rank as a whole, and an autoencoder fits a GPU: pass trainer.strategy=ddp"
        )
    health = config.health
    if health.rollbacks > 0 and (config.keep - 1) * config.every < max(health.window, health.chance):
        raise ValueError(
            "health.rollbacks needs a checkpoint from before a collapse: "
            f"(keep={config.keep} - 1) x every={config.every} batches must reach back "
            f"health.window={health.window} and health.chance={health.chance}"
        )
    if config.trained not in ("all", "decoder"):
        raise ValueError(f"trained={config.trained} must be all or decoder")
    if config.trained == "decoder" and config.init is None:
        raise ValueError("trained=decoder needs an encoder that is trained already: pass init=RUN")


def start_from(path: str, autoencoder: Any, shape: dict[str, Any]) -> None:
    """Copy a trained or imported autoencoder's weights."""
    from ldm.checkpoint import load_autoencoder

    loaded = load_autoencoder(path)
    defaults = {
        "in_channels": 3,
        "attention_resolutions": [],
        "variational": True,
        "norm_groups": 32,
        "shortcut": False,
    }
    theirs, ours = defaults | loaded.card["autoencoder"], defaults | shape
    if theirs["variational"] != ours["variational"]:
        raise ValueError(
            f"init={path} is {'not ' * (not theirs['variational'])}variational: choose regularizer= likewise"
        )
    wrong = [f"'autoencoder.{key}={theirs[key]}'".replace(" ", "") for key in theirs if theirs[key] != ours[key]]
    if wrong:
        raise ValueError(f"init={path} has another shape: pass {' '.join(wrong)}")
    autoencoder.load_state_dict(loaded.model.state_dict())


def scores(config: DictConfig, source: Any) -> Any:
    """The callback that measures reconstructions, rFD with config.features; LPIPS is among the loss's own terms."""
    import torch

    from ldm.data.sources import Digits
    from ldm.metrics.features import features_for, load_features
    from ldm.metrics.reconstruction import ReconstructionMetrics
    from ldm.training.reconstruction_scores import ReconstructionScores

    name = features_for(config.features, digits=isinstance(source, Digits))
    example = torch.zeros(2, 3, source.resolution, source.resolution, dtype=torch.uint8)
    features = load_features(name, example) if name is not None else None
    return ReconstructionScores(ReconstructionMetrics(None, features), config.autoencoder.latent_channels)
