"""Commands that are stopped at random moments: nothing that was there changes, nothing half written stays, and the same
command, started again, makes what it would have made."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.refusals import contents
from support.tiny import inside

pytestmark = pytest.mark.long

RESULTS = {  # of each command: its words, and the files that must be equal in the end
    "pack": (["data=digits"], ["index.json", "train-000000.tar", "val-000000.tar"]),
    "sample": (["model=runs/diffusion", "num=8", "sampler.steps=2"], ["samples.npz", "grid.png"]),
    "cache-latents": (["shard_size=600"], ["manifest.json", "train-000000.tar", "train-000002.tar"]),
    "convert": (["source=runs/autoencoder", "to=diffusers", "scaling_factor=1.0"], ["config.json"]),
    "evaluate": (["samples=null", "autoencoder=runs/autoencoder"], ["metrics.json"]),
    "likelihood": (["model=runs/diffusion", "num=4"], ["likelihood.json"]),
}


def start(command: str, run: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "ldm", command, f"run={run}", *RESULTS[command][0]]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", RESULTS)
def test_a_command_that_is_stopped_is_as_if_it_had_not_been(command, signum, ldm, pipeline):
    inside(pipeline, ldm)
    before = contents(Path("runs/diffusion")) | contents(Path("runs/autoencoder"))
    whole, parts = Path("runs/whole"), Path("runs/parts")
    for folder in (whole, parts):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    assert start(command, "whole").wait() == 0
    takes = time.monotonic() - began
    moments = random.Random(f"{command} {signum}")
    for _ in range(4):
        process = start(command, "parts")
        time.sleep(takes * moments.random())
        process.send_signal(signum)
        process.wait()
        if (parts / "index.json").exists():  # `ldm pack` had ended, and packs no folder twice
            break
    else:
        assert start(command, "parts").wait() == 0
    for name in RESULTS[command][1]:
        if name != "manifest.json":
            assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert [path for path in parts.rglob(".*") if path.is_file()] == []
    assert contents(Path("runs/diffusion")) | contents(Path("runs/autoencoder")) == before
