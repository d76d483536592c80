"""Shared fixtures: determinism, commands in process, and one tiny pipeline through both stages."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.forms import as_folder, as_npz, digits
from support.tiny import AS_TRAINED, CPU, TINY_DIFFUSION, run_command

pytest_plugins = ["support.cpu_seconds", "support.object_store", "support.wandb_server"]
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
    """A folder with runs/autoencoder, runs/latents and runs/diffusion: digits, tiny networks, a few batches.

    One process trains it for all of xdist's; each has a copy, in which its tests may work.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(shared / "pipeline.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed
        if not (shared / "pipeline-trained").exists():
            train_pipeline(shared / "pipeline-training")
            (shared / "pipeline-training").rename(shared / "pipeline-trained")
    copy = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(shared / "pipeline-trained", copy, dirs_exist_ok=True)
    return copy


@pytest.fixture
def there(pipeline: Path, ldm: Command, tmp_path: Path) -> Command:
    """The command, in a folder of its own with links to the pipeline's runs."""
    (tmp_path / "runs").mkdir()
    for run in ("autoencoder", "latents", "diffusion"):
        os.symlink(pipeline / "runs" / run, tmp_path / "runs" / run)
    return ldm


def train_pipeline(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a failed attempt has left
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("train-autoencoder", *AS_TRAINED, draws=True)
        run_command("cache-latents", "shard_size=600")
        run_command("train-diffusion", *TINY_DIFFUSION, *CPU, draws=True)


@pytest.fixture
def held_out(ldm):
    """The held-out digits as somebody's samples, in every form."""
    images, labels = digits("val")
    as_npz(images, labels, "theirs.npz")
    as_folder(images, labels, "theirs")
    return images, labels
