"""`make bench`: speed beside the peers, on this machine's CPU in float32: a table of ratios, each of one process in
which ours and theirs take turns.

    python jobs/bench/bench.py [SECTION ...]        all of SECTIONS, or some; docs/performance.md explains each line
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_latents
import torch
from diffusers import AutoencoderKL, UNet2DModel
from timing import Task, better, interleaved, middle, row, wake
from torch import Tensor, nn

from ldm.diffusion import samplers
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import LinearPath
from ldm.diffusion.times import Uniform, uniform_grid
from ldm.diffusion.weighting import Unweighted
from ldm.generate import Record
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet
from ldm.training.speed import forward_flops

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PRODUCT = 2 * 2048**3  # FLOP of two large float32 matrices
FUSED = partial(torch.optim.AdamW, fused=True)


def train_step(model: nn.Module, forward: Callable[[], Tensor], optimizer: Any) -> Task:
    """Forward, backward towards a fixed target and, where there is one, the optimiser's step."""
    wake(model)
    with torch.no_grad():
        target = torch.randn_like(forward())
    made = optimizer(model.parameters()) if optimizer is not None else None

    def step() -> None:
        model.zero_grad()
        (forward() - target).square().mean().backward()
        if made is not None:
            made.step()

    return step


# the two stages' networks, 36.1 M and 10.8 M parameters, and diffusers' of the same shapes


def our_unet(checkpoint: bool = False) -> UNet:
    return UNet(in_channels=4, num_classes=10, model_channels=96, channel_mult=(1, 2, 4), num_res_blocks=2,
                attention_resolutions=(2, 4), head_channels=32, checkpoint=checkpoint)  # fmt: skip


def their_unet() -> UNet2DModel:
    return UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 192, 384),
        layers_per_block=2,
        attention_head_dim=32,
        num_class_embeds=11,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def our_autoencoder() -> Autoencoder:
    return Autoencoder(channels=64, channel_mult=(1, 2, 4), num_res_blocks=1, latent_channels=4)


def their_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    )


def variants(make: dict[str, Callable[[], nn.Module]], task: Callable[[str, nn.Module, Any], Task]) -> dict[str, Task]:
    """Each maker's network in each memory format, by "ours nchw" and the like."""
    return {
        f"{who} {name}": task(who, maker().to(memory_format=layout), layout)  # type: ignore[call-overload]
        for who, maker in make.items()
        for name, layout in FORMATS.items()
    }


def share_of_bound(what: str, flops: float, times: dict[str, list[float]]) -> None:
    """Prints our rate in our better format against that of the matrix products between: what is left to win."""
    rate, bound = flops / middle(better(times, ["ours nchw", "ours nhwc"])), PRODUCT / middle(times["product"])
    print(
        f"    {flops / 1e9:.0f} GFLOP a {what} at {rate / 1e9:.0f} GFLOP/s: {rate / bound:.0%} of a matrix product's "
        f"{bound / 1e9:.0f}; at its rate {flops / bound:.3f} s"
    )


def compare(what: str, tasks: dict[str, Task], rounds: int) -> dict[str, list[float]]:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = interleaved(tasks | {"product": lambda: a @ b}, rounds)
    ours, theirs = ([name for name in times if name.startswith(who)] for who in ("ours", "theirs"))
    row(what, better(times, ours), better(times, theirs))
    print("".join(f"    {name} {middle(taken):.3f} s;" for name, taken in times.items()), flush=True)
    return times


def unet() -> None:
    """A training step of stage 2."""
    x, t, y = torch.randn(16, 4, 16, 16), torch.rand(16), torch.randint(10, (16,))
    makers: dict[str, Callable[[], nn.Module]] = {"ours": our_unet, "theirs": their_unet}

    def task(who: str, model: nn.Module, layout: Any, optimizers: dict[str, Any]) -> Task:
        z = x.to(memory_format=layout)
        ours, theirs = (lambda: model(z, t, y)), (lambda: model(z, 1000 * t, class_labels=y).sample)
        return train_step(model, ours if who == "ours" else theirs, optimizers[who])

    rounds = (
        ("U-Net step, theirs with plain AdamW", {"ours": FUSED, "theirs": torch.optim.AdamW}),
        ("U-Net step, both with fused AdamW", {"ours": FUSED, "theirs": FUSED}),
        ("U-Net forward and backward alone", {"ours": None, "theirs": None}),
    )
    times: dict[str, list[float]] = {}
    for what, optimizers in rounds:
        found = compare(what, variants(makers, partial(task, optimizers=optimizers)), 7)
        times = times or found
    share_of_bound("step", 3 * 16 * forward_flops(our_unet(), (1, 4, 16, 16), (1,), None), times)


def autoencoder() -> None:
    """A training step of stage 1's autoencoder alone, and encoding."""
    x = torch.randn(4, 3, 64, 64)
    makers: dict[str, Callable[[], nn.Module]] = {"ours": our_autoencoder, "theirs": their_autoencoder}

    def training(who: str, model: Any, layout: Any) -> Task:
        z, optimizer = x.to(memory_format=layout), FUSED if who == "ours" else torch.optim.AdamW
        ours, theirs = (lambda: model(z)[0]), (lambda: model(z, sample_posterior=True).sample)
        return train_step(model, ours if who == "ours" else theirs, optimizer)

    def encoding(who: str, model: Any, layout: Any) -> Task:
        z = x.to(memory_format=layout)
        encode = (lambda: model.encode(z).mean) if who == "ours" else (lambda: model.encode(z).latent_dist.mean)
        return torch.inference_mode()(encode)

    model, image = our_autoencoder(), (1, 3, 64, 64)
    times = compare("autoencoder step, theirs with plain AdamW", variants(makers, training), 7)
    share_of_bound("step", 3 * 4 * forward_flops(model, image), times)
    times = compare("autoencoder encoding", variants(makers, encoding), 15)
    share_of_bound("batch", 4 * forward_flops(model.encoder, image), times)


class Nothing(nn.Module):
    """A network that costs nothing: what is left of sampling is the sampler's own."""

    null_class = 10

    def forward(self, x_t: Tensor, *_: Tensor) -> Tensor:
        return x_t


def sampler() -> None:
    """What 8 steps of a sampler take without their network, against the network's evaluations."""
    net, nothing = our_unet().eval(), Nothing()
    objective = Objective(
        path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform()
    )
    x, y, t = torch.randn(16, 4, 16, 16), torch.randint(10, (16,)), torch.rand(16)
    times = uniform_grid(objective.path, 8, 1.0)
    for function, scale in ((samplers.euler, 1.0), (samplers.heun, 2.0), (samplers.dpmpp_2m, 2.0)):
        denoise = objective.denoiser(Guidance(scale=scale)(nothing, nothing.null_class), y)
        counted = Record(denoise)
        function(counted, objective.path, x, times)
        count = counted.evaluations * (1 if scale == 1.0 else 2)
        with torch.inference_mode():
            taken = interleaved(
                {
                    "own": partial(function, Record(denoise), objective.path, x, times),
                    "bare": lambda: net(x, t, y),
                },
                7,
            )
        own, bare = middle(taken["own"]), count * middle(taken["bare"])
        name = f"{function.__name__}, {'unguided' if scale == 1.0 else 'guided'}"
        print(
            f"| 8 steps of {name}: its own, and {count} evaluations | {own:.4f} s | {bare:.3f} s | {own / bare:.2%} |"
        )


TO_FIRST_BATCH = """
import os
from ldm.commands.cli import main
from ldm.training.progress import ProgressModule

ProgressModule.on_train_batch_start = lambda *_: os._exit(0)
main()
"""


def start() -> None:
    """From a command's start to its first batch, and what of it is Python's and torch's own."""
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
        for name, taken in interleaved(tasks, 3).items():
            print(f"| {name} | {middle(taken):.2f} s | | |", flush=True)


STEP_MEMORY = """
import sys, time
from pathlib import Path

sys.path.insert(0, {here!r})
import bench as b, torch


def resident(name):  # VmRSS is held now; VmHWM is the most that was held since the peak was reset
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if name in line).split()[1])


torch.set_num_threads(2)
x, t, y = torch.randn(64, 4, 16, 16), torch.rand(64), torch.randint(10, (64,))
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


def memory() -> None:
    """What a training step of the U-Net holds at most beyond its weights, each in a process of its own."""
    found = {}
    for who, model, forward in (
        ("ours", "b.our_unet()", "m(x, t, y)"),
        ("theirs", "b.their_unet()", "m(x, 1000 * t, class_labels=y).sample"),
        ("ours, net.checkpoint=true", "b.our_unet(checkpoint=True)", "m(x, t, y)"),
    ):
        program = STEP_MEMORY.format(here=str(Path(__file__).parent), model=model, forward=forward)
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        found[who] = [float(value) for value in done.stdout.split()]
    theirs, seconds = found.pop("theirs")
    print(f"    a step of batch 64 takes theirs {seconds:.2f} s;", end="")
    print("".join(f" {who} {taken:.2f} s;" for who, (_, taken) in found.items()))
    for who, (kilobytes, _) in found.items():
        gib = f"{kilobytes / 2**20:.2f} GiB | {theirs / 2**20:.2f} GiB"
        print(f"| peak memory of a step, batch 64: {who} | {gib} | **{theirs / kilobytes:.2f}** |", flush=True)


SECTIONS: dict[str, Task] = {f.__name__: f for f in (unet, autoencoder, sampler, start, memory)}
SECTIONS |= {"cache": lambda: bench_latents.cache(our_autoencoder()), "latents": bench_latents.latents}


if __name__ == "__main__":
    torch.manual_seed(0)
    print(
        f"float32, {torch.get_num_threads()} threads, torch {torch.__version__}; medians; ratio > 1: ours is faster\n"
    )
    print("| what | ours | theirs | ratio |\n|---|---|---|---|")
    for name in sys.argv[1:] or SECTIONS:
        SECTIONS[name]()
