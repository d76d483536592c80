"""Networks and runs that take seconds, and a way to run a command in this process."""

import os
import sys

import numpy as np
import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from ldm.commands.cli import main

TINY_AUTOENCODER = [
    "autoencoder.channels=8",
    "discriminator.channels=8",
    "steps=4",
    "every=2",
    "batch_size=4",
    "loss.disc_start=1",
    "loss.perceptual_weight=0",  # VGG16 takes longer than all the rest
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
TINY_DIFFUSION = [
    "net.model_channels=24",
    "sampler=euler",  # of the sample grids
    "sampler.steps=1",
    "steps=4",
    "every=2",
    "batch_size=8",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
CPU = ["trainer.accelerator=cpu"]
AS_TRAINED = [*TINY_AUTOENCODER, "loss.perceptual_weight=1", *CPU]  # the pipeline's autoencoder: VGG16 once
# Runs of the same training, divided otherwise, equal each other to rounding under these. SGD, since Adam's first steps
# are the gradients' signs; no noise; all of the loss; float64, since the losses and networks have kinks, at which the
# order of a float32 sum decides.
EXACT_AUTOENCODER = [
    *TINY_AUTOENCODER,
    *CPU,
    "regularizer=none",
    "steps=3",
    "every=3",
    "schedule.decay=constant",
    "disc_schedule.decay=constant",
    *(f"{o}._target_=torch.optim.SGD" for o in ("optimizer", "disc_optimizer")),
    *(f"~{o}.{key}" for o in ("optimizer", "disc_optimizer") for key in ("betas", "fused")),
    "optimizer.lr=0.01",
    "disc_optimizer.lr=0.01",
    "loss.disc_start=0",
    "loss.learn_logvar=true",
    "loss.lecam=0.1",
    "loss.r1=1",
    "loss.r1_every=2",
    "guard.clip=1.0",
    "disc_guard.clip=0.5",
    "trainer.precision=64-true",
]


def run_command(name: str, *overrides: str, draws: bool = False) -> None:
    """Run `ldm NAME OVERRIDES` in this process; a user's error is SystemExit with its line.

    Two things that take longer than a tiny training are left out: curves.png, unless `draws`; and Hydra's composing
    everything once beforehand, to see whether the config itself asks for a sweep, which none of ours does.
    """
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ldm", name, *overrides])
        patch.setattr(sys, "path", [*sys.path])  # the command adds the folder that it is started in
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        if name in ("train-autoencoder", "train-diffusion", "probe") and not draws:
            patch.setattr("ldm.training.curves.draw_curves", lambda *_: None)
        main()


def fails(name, *overrides):
    """Run a command that must fail, and return its line."""
    with pytest.raises(SystemExit) as info:
        run_command(name, *overrides)
    line = str(info.value.code)
    assert line.startswith("ldm: error: ")
    assert "\n" not in line
    return line


def inside(pipeline, ldm):
    """Work in the pipeline's own folder."""
    os.chdir(pipeline)
    return ldm


def noise_samples():
    rng = np.random.default_rng(0)
    np.savez("noise.npz", arr_0=rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return "noise.npz"
