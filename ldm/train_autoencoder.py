"""Stage 1: train the autoencoder on images."""

from pathlib import Path

from omegaconf import DictConfig

from ldm.command import build, build_loggers, command, construct, plain, whole, write_config


@command
def main(config: DictConfig, run: Path) -> None:
    from ldm.data.images import ImageData
    from ldm.losses.autoencoder import AutoencoderLoss
    from ldm.models.autoencoder import Autoencoder
    from ldm.models.discriminator import PatchDiscriminator
    from ldm.training.autoencoder import AutoencoderModule
    from ldm.training.callbacks import ReconstructionGrid
    from ldm.training.progress import Schedule, seed_from
    from ldm.training.run import fit

    source, steps = build(config.data), whole(config, "steps")
    seed_from(config.seed)
    autoencoder = construct(Autoencoder, config, "vae")
    discriminator = construct(PatchDiscriminator, config, "discriminator")
    factor = autoencoder.downsample_factor
    if source.resolution % factor:
        raise ValueError(f"data.resolution={source.resolution} is not a multiple of the autoencoder's factor {factor}")
    if config.loss.disc_weight > 0 and source.resolution < discriminator.min_size:
        raise ValueError(
            f"data.resolution={source.resolution} is too small: the discriminator needs {discriminator.min_size}"
        )
    module = AutoencoderModule(
        autoencoder=autoencoder,
        discriminator=discriminator,
        loss=construct(AutoencoderLoss, config, "loss"),
        optimizer=build(config.optimizer),
        disc_optimizer=build(config.disc_optimizer),
        schedule=Schedule(steps=steps, **plain(config.schedule)),
        seed=config.seed,
        batch_size=whole(config, "batch_size"),
        card={
            "kind": "autoencoder",
            "autoencoder": plain(config.vae),
            "preprocessing": source.preprocessing(),
            "config": plain(config),
        },
    )
    data = ImageData(source=source, batch_size=module.batch_size, num_workers=config.num_workers, seed=config.seed)
    fit(
        module,
        data,
        run=run,
        begin=lambda: write_config(config, run),
        steps=steps,
        every=whole(config, "every"),
        keep=whole(config, "keep"),
        ema_decay=config.ema_decay,
        pictures=ReconstructionGrid(),
        loggers=build_loggers(config.logger, run),
        trainer=plain(config.trainer),
    )
    print(f"autoencoder in {run}: reconstructions/, curves.png, metrics.csv, checkpoints/")
    source.report_skipped()


if __name__ == "__main__":
    main()
