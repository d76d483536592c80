"""Bytes that ranks exchange a batch and parameter, counted at the loopback interface of a Linux machine that is quiet
otherwise: python jobs/traffic.py LATENTS [OVERRIDE ...]   (a cache; two processes, gloo, CPU)

Two runs of different length are compared, so that start, saves and validation cancel.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RANKS, SHORT, LONG = 2, 10, 60


def received() -> int:
    """Bytes that have come in by the loopback interface."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def train(strategy: str, steps: int, folder: str, overrides: list[str]) -> tuple[int, int]:
    """Bytes over the loopback interface in a run, and its network's parameters."""
    run = f"{folder}/{strategy}-{steps}"
    options = [f"trainer.strategy={strategy}", f"steps={steps}", "every=1000", f"hydra.run.dir={run}", *overrides]
    options += ["trainer.accelerator=cpu", "trainer.limit_val_batches=0", "batch_size=8"]
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(RANKS),
        "-m",
        "ldm.commands.train_diffusion",
        *options,
    ]
    before = received()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    sent = received() - before
    from ldm.checkpoint import load_diffusion

    return sent, sum(p.numel() for p in load_diffusion(run).net.parameters())


def main() -> None:
    latents, *overrides = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for strategy in ("ddp", "fsdp"):
            runs = [train(strategy, steps, folder, [f"latents={latents}", *overrides]) for steps in (SHORT, LONG)]
            a_batch = (runs[1][0] - runs[0][0]) / (LONG - SHORT)
            parameters = runs[0][1]
            per_rank = a_batch / RANKS / parameters
            print(json.dumps({"strategy": strategy, "parameters": parameters, "bytes_a_batch": round(a_batch),
                              "bytes_a_batch_rank_and_parameter": round(per_rank, 2)}))  # fmt: skip


if __name__ == "__main__":
    main()
