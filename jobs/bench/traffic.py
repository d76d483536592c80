"""Bytes that ranks exchange a batch and parameter, by DDP and by FSDP: what docs/scale.md computes, measured.

    python jobs/bench/traffic.py LATENTS [OVERRIDE ...]

LATENTS is a cache; overrides are those of `ldm train-diffusion`. Two processes train on the CPU (gloo), and the bytes
at the loopback interface of this Linux machine are counted, which must be quiet otherwise. Two runs of different
length are compared, so that start, saves and validation cancel.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ldm.checkpoint import load_diffusion

RANKS, SHORT, LONG = 2, 10, 60  # batches


def received() -> int:
    """Bytes that have come in by the loopback interface."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def train(strategy: str, steps: int, folder: str, overrides: list[str]) -> tuple[int, int]:
    """Bytes that came in during a run, and its network's number of parameters."""
    run = f"{folder}/{strategy}-{steps}"
    options = [f"trainer.strategy={strategy}", f"steps={steps}", "every=1000", f"hydra.run.dir={run}", *overrides]
    options += ["trainer.accelerator=cpu", "trainer.limit_val_batches=0", "batch_size=8"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    before = received()
    command = [sys.executable, *launcher, "-m", "ldm", "train-diffusion", *options]
    subprocess.run(command, check=True, capture_output=True)
    return received() - before, sum(p.numel() for p in load_diffusion(run).net.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", metavar="LATENTS")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for strategy in ("ddp", "fsdp"):
            overrides = [f"latents={given.latents}", *given.overrides]
            (short, parameters), (long, _) = (train(strategy, steps, folder, overrides) for steps in (SHORT, LONG))
            a_batch = (long - short) / (LONG - SHORT)
            per_rank = round(a_batch / RANKS / parameters, 2)
            print(json.dumps({"strategy": strategy, "parameters": parameters, "bytes_a_batch": round(a_batch),
                              "bytes_a_batch_rank_and_parameter": per_rank}))  # fmt: skip


if __name__ == "__main__":
    main()
