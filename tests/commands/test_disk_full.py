"""A disk that fills while something is written: a clear error, nothing lost, and on it goes once there is room."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.runs import assert_same_training, checkpoint
from support.tiny import CPU, TINY_DIFFUSION, fails, run_command

from ldm.runtime.files import sha256


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system of 40 MB, and the current folder on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    monkeypatch.chdir(disk)
    yield disk
    monkeypatch.undo()
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(leave):
    """Leave so many bytes free on the current disk."""
    Path("ballast").unlink(missing_ok=True)
    with open("ballast", "wb") as file:
        file.write(b"x" * (shutil.disk_usage(".").free - leave))


def test_while_a_checkpoint_is_written(small_disk, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "schedule.decay=constant", "keep=5"]
    run_command("train-diffusion", "run=whole", *options)
    run_command("train-diffusion", "run=parts", *options, "steps=2")
    size = Path("runs/parts/checkpoints/00000002.ckpt").stat().st_size
    fill(leave=size // 2)
    line = fails("train-diffusion", "run=parts", *options)
    assert "No space left on device" in line
    assert "runs/parts/checkpoints/00000004.ckpt" in line
    assert [p.name for p in Path("runs/parts/checkpoints").iterdir()] == ["00000002.ckpt"]
    checkpoint("runs/parts", "diffusion")
    Path("ballast").unlink()
    run_command("train-diffusion", "run=parts", *options)
    assert_same_training("runs/parts", "runs/whole", "diffusion")


def test_while_a_shard_is_written(small_disk, pipeline):
    options = ["run=latents", f"autoencoder={pipeline}/runs/autoencoder", "shard_size=300"]
    run_command("cache-latents", *options[1:], "run=whole")
    run_command("cache-latents", *options, "slice=0/6")
    written = sorted(Path("runs/latents").glob("*.tar"))
    fill(leave=int(2.5 * written[0].stat().st_size))
    line = fails("cache-latents", *options)
    assert "No space left on device" in line
    assert ".tar" in line
    assert not Path("runs/latents/manifest.json").exists()
    assert not list(Path("runs/latents").glob(".*"))
    for card in Path("runs/latents").glob("*-*.json"):
        assert json.loads(card.read_text())["sha256"] == sha256(card.with_suffix(".tar"))
    os.unlink("ballast")
    run_command("cache-latents", *options)
    again, whole = (json.loads(Path(f"runs/{run}/manifest.json").read_text()) for run in ("latents", "whole"))
    assert again == whole


@pytest.mark.parametrize(
    ("command", "words", "file"),
    [
        ("sample", ["model={}/runs/diffusion", "num=64", "sampler.steps=1"], "samples.npz"),
        ("evaluate", ["samples=null", "autoencoder={}/runs/autoencoder"], "metrics.json"),
        ("pack", ["data=digits"], "train-000000.tar"),
        ("convert", ["source={}/runs/autoencoder", "to=diffusers", "scaling_factor=1"], "config.json"),
    ],
)
def test_while_results_are_written(command, words, file, small_disk, pipeline):
    options = ["run=out", *(word.format(pipeline) for word in words)]
    fill(leave=1024)
    line = fails(command, *options)
    assert "No space left on device" in line
    assert "make room" in line
    assert not Path("runs/out", file).exists()
    assert not list(Path("runs").rglob("*.tmp"))
    Path("ballast").unlink()
    run_command(command, *options)
    assert Path("runs/out", file).exists()
