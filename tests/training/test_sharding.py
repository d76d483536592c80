"""Two processes (gloo): fsdp and ddp train what one process trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny import CPU, TINY_DIFFUSION
from training.test_resume import read

from ldm.checkpoint import load_diffusion

OPTIONS = [*TINY_DIFFUSION, *CPU, "schedule.decay=constant", "+optimizer.eps=1e-3"]  # Adam's first steps are signs


def two(folder, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ldm", "train-diffusion"]
    subprocess.run([*command, *OPTIONS, "batch_size=4", *options], cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
def test_ranks_change_nothing_sharded_or_not(ldm, pipeline):
    latents = f"latents={pipeline}/runs/latents"
    ldm("train-diffusion", *OPTIONS, latents, "run=one")
    two(".", latents, "run=ddp")
    two(".", latents, "run=fsdp", "trainer.strategy=fsdp")
    two(".", latents, "run=parts", "trainer.strategy=fsdp", "steps=2")
    two(".", latents, "run=parts", "trainer.strategy=fsdp")
    found = {run: read(Path("runs", run), "diffusion") for run in ("one", "ddp", "fsdp", "parts")}
    for key in ("state_dict", "current_model_state"):
        for run in (
            "ddp",
            "fsdp",
            "parts",
        ):  # shards that were loaded lie elsewhere, and round otherwise: not bit for bit
            for name, tensor in found["one"][key].items():
                torch.testing.assert_close(found[run][key][name], tensor, rtol=1e-5, atol=1e-5)
    load_diffusion("runs/fsdp", "raw")  # the same file as any other
    two(".", latents, "run=fsdp", "steps=6")  # goes on by ddp
    assert "resumes from 00000004.ckpt" in Path("runs/fsdp/log.txt").read_text()
