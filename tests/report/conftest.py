"""The tiny pipeline with samples and their scores."""

import shutil
from pathlib import Path

import pytest
from support.tiny import run_command


@pytest.fixture(scope="session")
def whole(pipeline, tmp_path_factory):
    """A folder with runs/autoencoder, latents, diffusion, samples and metrics."""
    folder = tmp_path_factory.mktemp("whole")
    for run in ("autoencoder", "latents", "diffusion"):  # other tests of this process may have added more
        shutil.copytree(pipeline / "runs" / run, folder / "runs" / run)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("sample", "num=23", "sampler.steps=2", "guidance=1.5")
        run_command("evaluate", "classifier=svc", "lpips=null")
    return folder


@pytest.fixture
def runs(whole, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs")
