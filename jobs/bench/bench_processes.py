"""What takes processes of its own: the sections `start` and `memory` of jobs/bench/bench.py."""

import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Task, interleaved, middle

TO_FIRST_BATCH = """
import os
from ldm.commands.cli import main
from ldm.training.progress import ProgressModule

ProgressModule.on_train_batch_start = lambda *_: os._exit(0)
main()
"""


def start(rounds: int) -> None:
    """From a command's start to its first batch, and how much of it are imports."""
    ldm = [sys.executable, "-m", "ldm"]
    options = ["steps=1", "every=1", "trainer.accelerator=cpu", "trainer.limit_val_batches=0", "batch_size=2"]
    tiny = ["autoencoder.channels=8", "discriminator.channels=8", "loss.perceptual_weight=0", "loss.disc_weight=0"]
    with tempfile.TemporaryDirectory() as folder:

        def run(*command: str) -> Task:
            return lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)

        def training() -> None:
            run(*ldm, "train-autoencoder", *options, *tiny)()
            subprocess.run(["rm", "-rf", f"{folder}/runs"], check=True)

        def first() -> None:
            run(sys.executable, "-c", TO_FIRST_BATCH, "train-autoencoder", *options, *tiny)()
            subprocess.run(["rm", "-rf", f"{folder}/runs"], check=True)

        tasks = {
            "import torch": run(sys.executable, "-c", "import torch"),
            "import lightning": run(sys.executable, "-c", "import lightning"),
            "ldm --help": run(*ldm, "--help"),
            "ldm train-autoencoder --help": run(*ldm, "train-autoencoder", "--help"),
            "ldm train-autoencoder, to its first batch": first,
            "ldm train-autoencoder, one batch, with its pictures and checkpoint": training,
        }
        for name, taken in interleaved(tasks, rounds).items():
            print(f"| {name} | {middle(taken):.2f} s | | |", flush=True)


STEP_MEMORY = """
import sys, time
from pathlib import Path

sys.path.insert(0, {here!r})
import bench as b, torch


def resident(name):  # VmRSS is held now; VmHWM is the most that was held since the peak was reset
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if name in line).split()[1])


torch.set_num_threads(2)
x, t, y = torch.randn({batch}, 4, 16, 16), torch.rand({batch}), torch.randint(10, ({batch},))
m = {model}
step = b.train_step(m, lambda: {forward}, b.FUSED)
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
step(), step()
peak = resident("VmHWM")
start = time.perf_counter()
[step() for _ in range(3)]
print(peak - before, (time.perf_counter() - start) / 3)
"""


def memory(channels: int, batch: int) -> None:
    """What a training step of the U-Net holds at most beyond its weights."""
    here = str(Path(__file__).parent)
    measured = {}
    for who, model, forward in (
        ("ldm", f"b.ldm_unet({channels})", "m(x, t, y)"),
        ("diffusers", f"b.diffusers_unet({channels})", "m(x, 1000 * t, class_labels=y).sample"),
        ("ldm, net.checkpoint=true", f"b.ldm_unet({channels}, checkpoint=True)", "m(x, t, y)"),
    ):
        program = STEP_MEMORY.format(here=here, batch=batch, model=model, forward=forward)
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        measured[who] = [float(value) for value in done.stdout.split()]  # kilobytes, seconds
    print(
        f"    a step of batch {batch} takes", "".join(f" {who} {taken:.2f} s;" for who, (_, taken) in measured.items())
    )
    peer, _ = measured.pop("diffusers")
    for who, (kilobytes, _) in measured.items():
        gib = f"{kilobytes / 2**20:.2f} GiB | {peer / 2**20:.2f} GiB"
        print(f"| peak memory of a step, batch {batch}: {who} | {gib} | **{peer / kilobytes:.2f}** |", flush=True)
