"""store=, and places in an object store where a folder may stand: both stages on machines that lose their disks."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.object_store import ADDRESS, BUCKET, keys
from support.runs import assert_same_training
from support.tiny import CPU, TINY_DIFFUSION, fails

import ldm as package

RUNS = f"{ADDRESS}/runs"
STORE = f"store={RUNS}"
CACHE = ["cache-latents", "run=latents", "autoencoder=runs/autoencoder", "shard_size=512", STORE]
TRAIN = ["train-diffusion", *TINY_DIFFUSION, *CPU, f"latents={RUNS}/latents"]


@pytest.fixture
def ours(s3, there):
    """The command, with runs/latents a folder of its own."""
    Path("runs/latents").unlink()
    return there


def test_both_stages_go_on_elsewhere_as_if_nothing_had_happened(s3, ours, monkeypatch, capsys):
    ours(*CACHE)
    assert "runs/latents/manifest.json" in keys(s3)
    shutil.rmtree("runs/latents")  # another machine
    ours(*CACHE)
    assert "4 of 4 shards are there and whole" in capsys.readouterr().out
    assert not list(Path("runs/latents").glob("*.tar"))  # their cards alone were fetched
    ours(*TRAIN, "run=whole")
    ours(*TRAIN, "run=parts", "steps=2", STORE)
    shutil.rmtree("runs/parts")
    ours(*TRAIN, "run=parts", STORE)
    assert_same_training("runs/parts", "runs/whole", "diffusion")
    assert [key for key in keys(s3) if key.endswith(".ckpt")] == [
        "runs/latents/autoencoder.ckpt",
        "runs/parts/autoencoder.ckpt",  # which decodes its samples anywhere
        "runs/parts/checkpoints/00000002.ckpt",
        "runs/parts/checkpoints/00000004.ckpt",
    ]
    shutil.rmtree("runs")
    ours("sample", f"model={RUNS}/parts", "num=2", "sampler.steps=1", STORE)
    assert "runs/samples/samples.npz" in keys(s3)
    assert package.load(f"{RUNS}/parts").sample([1], n=1, steps=1).shape[0] == 1


def test_a_sweeps_finished_points_are_finished_elsewhere(s3, ours, capsys):
    sweep = ["-m", "run=sweep", *TINY_DIFFUSION, *CPU, "latents=runs/kept", "steps=2", "seed=0,1", STORE]
    shutil.copytree(Path("runs/diffusion").resolve().parent / "latents", "runs/kept")
    ours("train-diffusion", *sweep)
    shutil.rmtree("runs/sweep")  # another machine
    capsys.readouterr()
    ours("train-diffusion", *sweep)
    assert capsys.readouterr().out.count("is finished: skipped") == 2
    assert not list(Path("runs/sweep").rglob("*.ckpt"))  # nothing else was fetched


def test_shards_that_are_missing_there_alone_are_written(s3, ours, capsys):
    ours(*CACHE)
    shutil.rmtree("runs/latents")
    s3.delete_object(Bucket=BUCKET, Key="runs/latents/train-000001.tar")
    ours(*CACHE)
    assert "3 of 4 shards are there and whole" in capsys.readouterr().out
    assert "runs/latents/train-000001.tar" in keys(s3)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_what_was_uploaded(s3, ours):
    """By SIGKILL at any moment of a run that saves after each batch; its disk is lost with it."""
    ours(*CACHE)
    many = [*TRAIN, "steps=40", "every=1", STORE]
    ours(*many, "run=whole")
    code = "from ldm.runtime import run_copies; run_copies.EVERY = 0.05; from ldm.commands.cli import main; main()"
    for kills in range(3):
        command = [sys.executable, "-c", code, *many, "run=parts"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            before = sum("runs/parts/checkpoints/" in key for key in keys(s3))
            newest = max(keys(s3)) if before else ""
            while max((key for key in keys(s3) if "runs/parts/checkpoints/" in key), default="") in ("", newest):
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(0.3 * kills)
            process.kill()
        shutil.rmtree("runs/parts", ignore_errors=True)
    ours(*many, "run=parts")
    assert_same_training("runs/parts", "runs/whole", "diffusion")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*CACHE[:-1], "store=bucket/runs"],
            "store=bucket/runs must name an object store's folder, as s3://bucket/runs",
        ),
        ([*CACHE[:-1], "store=s3://no-such-bucket/runs"], "does not exist"),
        (["train-diffusion", f"latents={ADDRESS}/nothing"], f"latents={ADDRESS}/nothing holds nothing"),
    ],
)
def test_what_does_not_fit_is_said_and_leaves_nothing(s3, ours, words, said):
    assert said in fails(*words)
    assert not Path("runs/latents").exists()
