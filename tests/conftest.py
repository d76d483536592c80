"""Shared fixtures: determinism, commands in process, and one tiny pipeline through both stages."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

TINY_AUTOENCODER = [
    "vae.channels=8",
    "discriminator.channels=8",
    "steps=4",
    "every=2",
    "batch_size=4",
    "loss.disc_start=1",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
TINY_DIFFUSION = [
    "net.model_channels=24",
    "sampler.steps=2",
    "steps=4",
    "every=2",
    "batch_size=8",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
CPU = ["trainer.accelerator=cpu"]

Command = Callable[..., None]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run_command(name: str, *overrides: str) -> None:
    """Run `ldm NAME OVERRIDES` in this process; a user's error is SystemExit with its line."""
    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, [f"ldm {name}", *overrides]
    try:
        import_module(f"ldm.{name.replace('-', '_')}").main()
    finally:
        sys.argv = argv


@pytest.fixture
def ldm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`ldm("sample", "num=4")` in a temporary working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return run_command


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/autoencoder, runs/latents and runs/diffusion: digits, tiny networks, a few batches."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("train-autoencoder", *TINY_AUTOENCODER, *CPU)
        run_command("cache-latents", "shard_size=600")
        run_command("train-diffusion", *TINY_DIFFUSION, *CPU)
    return folder
