"""Two processes (gloo): fsdp and ddp train what one process trains."""

from pathlib import Path

import pytest
import torch
from support.processes import ranks
from support.runs import checkpoint
from support.tiny import CPU, TINY_DIFFUSION

from ldm.checkpoint import load_diffusion

OPTIONS = [*TINY_DIFFUSION, *CPU, "schedule.decay=constant", "+optimizer.eps=1e-3"]  # Adam's first steps are signs


@pytest.mark.slow
def test_ranks_change_nothing_sharded_or_not(ldm, pipeline):
    latents = f"latents={pipeline}/runs/latents"
    ldm("train-diffusion", *OPTIONS, latents, "run=one")
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=ddp")
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=fsdp", "trainer.strategy=fsdp")
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=parts", "trainer.strategy=fsdp", "steps=2")
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=parts", "trainer.strategy=fsdp")
    found = {run: checkpoint(f"runs/{run}", "diffusion") for run in ("one", "ddp", "fsdp", "parts")}
    for key in ("state_dict", "current_model_state"):
        for run in (
            "ddp",
            "fsdp",
            "parts",
        ):  # shards that were loaded lie elsewhere, and round otherwise: not bit for bit
            for name, tensor in found["one"][key].items():
                torch.testing.assert_close(found[run][key][name], tensor, rtol=1e-5, atol=1e-5)
    load_diffusion("runs/fsdp", "raw")  # the same file as any other
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=fsdp", "steps=6")  # goes on by ddp
    assert "resumes from 00000004.ckpt" in Path("runs/fsdp/log.txt").read_text()
