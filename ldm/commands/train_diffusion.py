"""Stage 2: train the diffusion or flow-matching network on cached latents."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.commands.entry import build, build_loggers, plain, whole, write_config


def main(config: DictConfig, run: Path) -> float | None:
    from ldm.checkpoint import load_diffusion, matching_autoencoder, newest
    from ldm.data.cache_reader import LatentCache, LatentData
    from ldm.data.cache_writer import AUTOENCODER, MANIFEST
    from ldm.diffusion.guidance import Guidance
    from ldm.diffusion.objective import Objective
    from ldm.generate import Generator
    from ldm.runtime.files import sha256
    from ldm.runtime.loggers import artifact
    from ldm.training.curves import last_value
    from ldm.training.diffusion_module import DiffusionModule
    from ldm.training.pictures import SampleGrid
    from ldm.training.progress import Schedule, seed_from
    from ldm.training.run import Plan, Tracking, fit

    steps = whole(config, "steps")
    objective = Objective(**build(config.objective))
    if config.guidance != 1 and config.label_dropout == 0:
        raise ValueError(f"guidance={config.guidance} of the sample grids needs label_dropout > 0: pass guidance=1")
    cache = LatentCache(config.latents, config.verify)
    manifest = cache.manifest
    autoencoder = matching_autoencoder(config.autoencoder, AUTOENCODER, cache.folder, manifest["autoencoder"])
    shape = {"in_channels": cache.latent_shape[0], "num_classes": len(cache.class_names)}
    seed_from(config.seed)
    net = build(plain(config.net) | shape)
    if config.init is not None and newest(run) is None:  # else the run has weights of its own
        start_from(config.init, net)
    module = DiffusionModule(
        net=net,
        objective=objective,
        stats=cache.stats,
        label_dropout=config.label_dropout,
        optimizer=build(config.optimizer),
        schedule=Schedule(steps=steps, **plain(config.schedule)),
        seed=config.seed,
        batch_size=whole(config, "batch_size"),
        lr_per_image=config.lr_per_image,
        card={
            "kind": "diffusion",
            "net": plain(config.net) | shape,
            "objective": plain(config.objective),
            "label_dropout": config.label_dropout,
            "stats": {"mean": manifest["mean"], "std": manifest["std"]},
            "latent_shape": list(cache.latent_shape),
            "class_names": cache.class_names,
            "preprocessing": manifest["preprocessing"],
            "autoencoder": autoencoder.fingerprint,
            "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
            "config": plain(config),
        },
    )
    generator = Generator(
        net=net,
        objective=objective,
        stats=cache.stats,
        autoencoder=autoencoder.model,
        latent_shape=cache.latent_shape,
        guidance=Guidance(scale=config.guidance),
        grid=build(config.grid),
        seed=config.seed,
        **build(config.sampler),
    )
    fit(
        module,
        LatentData(
            cache=cache,
            batch_size=module.batch_size,
            num_workers=config.num_workers,
            seed=config.seed,
            coupling=objective.coupling,
        ),
        Plan(
            run=run,
            steps=steps,
            every=whole(config, "every"),
            keep=whole(config, "keep"),
            ema_decay=config.ema_decay,
            trainer=plain(config.trainer),
        ),
        networks=[net],
        callbacks=[SampleGrid(generator, len(cache.class_names))],
        tracking=Tracking(
            loggers=build_loggers(config.logger, run),
            used=[artifact("latents", sha256(cache.folder / MANIFEST), cache.folder)],
            made=lambda: artifact("diffusion", load_diffusion(run).fingerprint, run),
        ),
        begin=lambda: write_config(config, run),
    )
    print(f"diffusion model in {run}: samples/, curves.png, metrics.csv, checkpoints/")
    return last_value(run, config.returns)


def start_from(path: str, net: Any) -> None:
    """Copy a trained or imported network's weights."""
    from ldm.checkpoint import load_diffusion

    loaded = load_diffusion(path)
    try:
        net.load_state_dict(loaded.net.state_dict())
    except RuntimeError:
        shape = {key: value for key, value in loaded.card["net"].items() if key != "_target_"}
        raise ValueError(f"init={path} has another shape: choose the net= of {shape}") from None
