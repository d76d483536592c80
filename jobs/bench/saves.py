"""How long training waits for a checkpoint, whole or sharded, under trainer.strategy=fsdp.

    python jobs/bench/saves.py LATENTS [OVERRIDE ...]

LATENTS is a cache; overrides are those of `ldm train-diffusion`. Two processes (gloo) train on the CPU and save after
each fifth batch; the two formats take turns. A save's seconds are those in which rank 0 does nothing else: from the
batch's end to the next batch, and what it waits for the save before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TIMED = """
import json, time
from ldm.commands.cli import main
from ldm.training import lightning_internals, saves

seconds, after_batch = [], saves.Saves.after_batch

def timed(self, trainer, module):
    start = time.perf_counter()
    after_batch(self, trainer, module)
    if self.saved and trainer.is_global_zero:
        seconds.append(time.perf_counter() - start)
        print("SAVED", json.dumps(seconds[-1]), flush=True)

saves.Saves.after_batch = timed
main()
"""
RANKS, EVERY, SAVES, ROUNDS = 2, 5, 4, 2


def seconds(checkpoints: str, folder: str, overrides: list[str]) -> list[float]:
    """What the saves of a run took, the first, in which groups and threads are made, left out."""
    program = Path(folder, "timed.py")
    program.write_text(TIMED)
    options = ["trainer.strategy=fsdp", f"trainer.checkpoints={checkpoints}", f"steps={EVERY * SAVES}", "keep=1"]
    options += [f"every={EVERY}", "trainer.accelerator=cpu", "trainer.limit_val_batches=0", "batch_size=8", *overrides]
    options += [f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    done = subprocess.run([*launcher, str(program), "train-diffusion", *options], check=True, capture_output=True)
    lines = done.stdout.decode().splitlines()
    return [float(line.split()[1]) for line in lines if line.startswith("SAVED")][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", metavar="LATENTS")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    given = parser.parse_args()
    taken: dict[str, list[float]] = {"whole": [], "sharded": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for checkpoints, found in taken.items():
                found += seconds(checkpoints, folder, [f"latents={given.latents}", *given.overrides])
    for checkpoints, found in taken.items():
        print(json.dumps({"checkpoints": checkpoints, "median_s": round(statistics.median(found), 3),
                          "from_s": round(min(found), 3), "to_s": round(max(found), 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
