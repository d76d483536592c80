"""Shared fixtures: determinism, commands in process, and one tiny pipeline through both stages."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.forms import as_folder, as_npz, digits
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, run_command

Command = Callable[..., None]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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


@pytest.fixture
def held_out(ldm):
    """The held-out digits as somebody's samples, in every form."""
    images, labels = digits("val")
    as_npz(images, labels, "theirs.npz")
    as_folder(images, labels, "theirs")
    return images, labels
