"""What takes processes of its own: the sections `start`, `memory` and `encoding` of jobs/bench/bench.py."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from timing import Task, interleaved, middle, row

from ldm.runtime.tables import read_rows

EXPERIMENT = Path(__file__).parents[2] / "conf/experiment/cifar10_cpu.yaml"

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


def encoding(batches: int, rounds: int) -> None:
    """A step of stage 2 that reads and encodes its images itself, beside one on a cache: cifar10_cpu's networks."""
    keys = yaml.safe_load(EXPERIMENT.read_text())
    encoder = [f"autoencoder.{key}={str(value).replace(' ', '')}" for key, value in keys["autoencoder"].items()]
    net = [key for key in keys["probe"]["diffusion"] if key.startswith(("objective", "net."))]
    data = ["data=folder", "data.root=pictures", "data.resolution=32"]
    few = ["trainer.accelerator=cpu", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=1"]
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures/all")
        pictures.mkdir(parents=True)
        for i, pixels in enumerate(np.random.default_rng(0).integers(256, size=(512, 32, 32, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(pictures / f"{i}.png")

        def ldm(*words: str) -> None:
            subprocess.run([sys.executable, "-m", "ldm", *words], cwd=folder, check=True, capture_output=True)

        def step_on(*latents: str) -> float:
            ldm("train-diffusion", f"steps={batches}", f"every={batches}", "num_workers=1", *latents, *net, *few)
            rates = [
                float(line["speed/images_per_s"]) for line in read_rows(Path(folder, "runs/diffusion/metrics.csv"))
            ]
            subprocess.run(["rm", "-rf", f"{folder}/runs/diffusion"], check=True)
            return 64 / middle(rates[batches // 4 :])

        ldm("train-autoencoder", "steps=2", "every=2", "loss.perceptual_weight=0", *encoder, *data, *few)
        ldm("cache-latents", *data)
        tasks = {
            "encoded": lambda: step_on("latents=null", "autoencoder=runs/autoencoder", *data),
            "cached": lambda: step_on("latents=runs/latents"),
        }
        times = interleaved(tasks, rounds, timed=lambda task: task())
        row("a step of stage 2 that encodes its images, from a cache", times["encoded"], times["cached"])
