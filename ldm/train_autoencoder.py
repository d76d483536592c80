"""Stage 1: train the autoencoder on images."""

from pathlib import Path

from omegaconf import DictConfig

from ldm.command import build, command, plain


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

    source = build(config.data)
    seed_from(config.seed)
    autoencoder = Autoencoder(**plain(config.vae))
    factor = autoencoder.downsample_factor
    if source.resolution % factor:
        raise ValueError(f"data.resolution={source.resolution} is not a multiple of the autoencoder's factor {factor}")
    module = AutoencoderModule(
        autoencoder=autoencoder,
        discriminator=PatchDiscriminator(**plain(config.discriminator)),
        loss=AutoencoderLoss(**plain(config.loss)),
        optimizer=build(config.optimizer),
        disc_optimizer=build(config.disc_optimizer),
        schedule=Schedule(steps=config.steps, **plain(config.schedule)),
        seed=config.seed,
        batch_size=config.batch_size,
        card={
            "kind": "autoencoder",
            "autoencoder": plain(config.vae),
            "discriminator": plain(config.discriminator),
            "preprocessing": source.preprocessing(),
        },
    )
    data = ImageData(source=source, batch_size=config.batch_size, num_workers=config.num_workers, seed=config.seed)
    fit(
        module,
        data,
        run=run,
        steps=config.steps,
        every=config.every,
        keep=config.keep,
        ema_decay=config.ema_decay,
        pictures=ReconstructionGrid(),
        loggers=list(build(config.logger).values()),
        trainer=plain(config.trainer),
    )
    print(f"autoencoder in {run}: reconstructions/, curves.png, metrics.csv, checkpoints/")
    source.report_skipped()


if __name__ == "__main__":
    main()
