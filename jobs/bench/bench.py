"""`make bench`: this project's speed beside its peers', on this machine's CPU in float32, as a table of ratios.

    python jobs/bench/bench.py [SECTION ...] [--tiny]

All sections, or some; docs/performance.md explains each line. The two codebases that a line compares take turns; a
ratio above 1 says that this project is faster. --tiny is for a test of this program: its figures say nothing.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import bench_latents
import bench_processes
import torch
from diffusers import AutoencoderKL, UNet2DModel
from timing import Task, better, interleaved, middle, row, wake
from torch import Tensor, nn

from ldm.condition import Condition, no_label
from ldm.diffusion import samplers
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import LinearPath
from ldm.diffusion.sampling import Record
from ldm.diffusion.times import Uniform, uniform_grid
from ldm.diffusion.weighting import Unweighted
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet
from ldm.training.power_averages import PowerAverages
from ldm.training.speed import forward_flops

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
FUSED = partial(torch.optim.AdamW, fused=True)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured: by default what docs/performance.md has.

    Args:
        unet, autoencoder: channels of the first level: 36.1 M and 10.8 M parameters.
        batch:             images of a U-Net's step; an autoencoder's has a quarter of them.
        product:           side of the square matrices whose product shows what the machine can do.
        most_rounds:       rounds a line at most.
        latents:           sizes of the section `latents`.
        images:            number of images of the section `cache`.
    """

    unet: int = 96
    autoencoder: int = 64
    batch: int = 16
    product: int = 2048
    most_rounds: int = 100
    latents: bench_latents.Size = field(default_factory=bench_latents.Size)
    images: int = 256

    def rounds(self, wanted: int) -> int:
        return min(wanted, self.most_rounds)


TINY = Size(unet=32, autoencoder=32, batch=4, product=256, most_rounds=2, images=16,
            latents=bench_latents.Size(count=512, batch=32, drawn=128, copies=2))  # fmt: skip


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


# the two stages' networks, and diffusers' of the same shapes


def ldm_unet(channels: int = Size.unet, checkpoint: bool = False) -> UNet:
    return UNet(in_channels=4, num_classes=10, model_channels=channels, channel_mult=(1, 2, 4), num_res_blocks=2,
                attention_resolutions=(2, 4), head_channels=32, checkpoint=checkpoint)  # fmt: skip


def diffusers_unet(channels: int = Size.unet) -> Any:
    return UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(channels, 2 * channels, 4 * channels),
        layers_per_block=2,
        attention_head_dim=32,
        num_class_embeds=11,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def ldm_autoencoder(channels: int = Size.autoencoder) -> Autoencoder:
    return Autoencoder(channels=channels, channel_mult=(1, 2, 4), num_res_blocks=1, latent_channels=4)


def diffusers_autoencoder(channels: int = Size.autoencoder) -> Any:
    return AutoencoderKL(
        block_out_channels=(channels, 2 * channels, 4 * channels),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    )


def variants(
    make: Mapping[str, Callable[[], nn.Module]], task: Callable[[str, nn.Module, Any], Task]
) -> dict[str, Task]:
    """Each maker's network in each memory format, by "ldm nchw" and the like."""
    return {
        f"{who} {name}": task(who, maker().to(memory_format=layout), layout)
        for who, maker in make.items()
        for name, layout in FORMATS.items()
    }


def share_of_bound(what: str, flops: float, times: dict[str, list[float]], size: Size) -> None:
    """Print the share of a matrix product's rate that our network has in its faster format: what is left to win."""
    rate = flops / middle(better(times, ["ldm nchw", "ldm nhwc"]))
    bound = 2 * size.product**3 / middle(times["product"])
    print(
        f"    {flops / 1e9:.0f} GFLOP a {what} at {rate / 1e9:.0f} GFLOP/s: {rate / bound:.0%} of a matrix product's "
        f"{bound / 1e9:.0f}; at its rate {flops / bound:.3f} s"
    )


def compare(what: str, tasks: dict[str, Task], rounds: int, size: Size) -> dict[str, list[float]]:
    """Print a line of two codebases' tasks, each in its faster format; returns all seconds, matrix products' too."""
    a, b = torch.randn(2, size.product, size.product)
    times = interleaved(tasks | {"product": lambda: a @ b}, size.rounds(rounds))
    ldm, diffusers = ([name for name in times if name.startswith(who)] for who in ("ldm", "diffusers"))
    row(what, better(times, ldm), better(times, diffusers))
    print("".join(f"    {name} {middle(taken):.3f} s;" for name, taken in times.items()), flush=True)
    return times


def unet(size: Size) -> None:
    """A training step of stage 2."""
    n = size.batch
    x, t, y = torch.randn(n, 4, 16, 16), torch.rand(n), torch.randint(10, (n,))
    makers = {"ldm": partial(ldm_unet, size.unet), "diffusers": partial(diffusers_unet, size.unet)}

    def task(who: str, model: nn.Module, layout: Any, optimizers: dict[str, Any]) -> Task:
        z = x.to(memory_format=layout)
        ldm, diffusers = (lambda: model(z, t, y)), (lambda: model(z, 1000 * t, class_labels=y).sample)
        return train_step(model, ldm if who == "ldm" else diffusers, optimizers[who])

    rounds = (
        ("U-Net step, diffusers' with plain AdamW", {"ldm": FUSED, "diffusers": torch.optim.AdamW}),
        ("U-Net step, both with fused AdamW", {"ldm": FUSED, "diffusers": FUSED}),
        ("U-Net forward and backward alone", {"ldm": None, "diffusers": None}),
    )
    times: dict[str, list[float]] = {}
    for what, optimizers in rounds:
        taken = compare(what, variants(makers, partial(task, optimizers=optimizers)), 7, size)
        times = times or taken
    share_of_bound("step", 3 * n * forward_flops(ldm_unet(size.unet), x[:1], t[:1], y[:1]), times, size)


def autoencoder(size: Size) -> None:
    """A training step of stage 1's autoencoder alone, and encoding."""
    n = size.batch // 4
    x = torch.randn(n, 3, 64, 64)
    makers = {
        "ldm": partial(ldm_autoencoder, size.autoencoder),
        "diffusers": partial(diffusers_autoencoder, size.autoencoder),
    }

    def training(who: str, model: Any, layout: Any) -> Task:
        z, optimizer = x.to(memory_format=layout), FUSED if who == "ldm" else torch.optim.AdamW
        ldm, diffusers = (lambda: model(z)[0]), (lambda: model(z, sample_posterior=True).sample)
        return train_step(model, ldm if who == "ldm" else diffusers, optimizer)

    def encoding(who: str, model: Any, layout: Any) -> Task:
        z = x.to(memory_format=layout)
        encode = (lambda: model.encode(z).mean) if who == "ldm" else (lambda: model.encode(z).latent_dist.mean)
        return torch.inference_mode()(encode)

    model = ldm_autoencoder(size.autoencoder)
    times = compare("autoencoder step, diffusers' with plain AdamW", variants(makers, training), 7, size)
    share_of_bound("step", 3 * n * forward_flops(model, x[:1]), times, size)
    times = compare("autoencoder encoding", variants(makers, encoding), 15, size)
    share_of_bound("batch", n * forward_flops(model.encoder, x[:1]), times, size)


class Nothing(nn.Module):
    """A network that costs nothing: what sampling takes with it is the sampler's time alone."""

    def forward(self, x_t: Tensor, *_: Tensor | Condition) -> Tensor:
        return x_t


def sampler(size: Size) -> None:
    """What 8 steps of a sampler take without their network, against the network's evaluations."""
    net, nothing, n = ldm_unet(size.unet).eval(), Nothing(), size.batch
    objective = Objective(
        path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform()
    )
    x, y, t = torch.randn(n, 4, 16, 16), torch.randint(10, (n,)), torch.rand(n)
    times = uniform_grid(objective.path, 8, 1.0)
    for function, scale in ((samplers.euler, 1.0), (samplers.heun, 2.0), (samplers.dpmpp_2m, 2.0)):
        denoise = objective.denoiser(Guidance(scale=scale)(nothing, no_label(10)), y)
        counted = Record(denoise)
        function(counted, objective.path, x, times)
        count = counted.evaluations * (1 if scale == 1.0 else 2)
        with torch.inference_mode():
            taken = interleaved(
                {
                    "sampler": partial(function, Record(denoise), objective.path, x, times),
                    "network": lambda: net(x, t, y),
                },
                size.rounds(7),
            )
        alone, network = middle(taken["sampler"]), count * middle(taken["network"])
        name = f"{function.__name__}, {'unguided' if scale == 1.0 else 'guided'}"
        print(
            f"| 8 steps of {name}: without the network, and its {count} evaluations | {alone:.4f} s | {network:.3f} s "
            f"| {alone / network:.2%} |"
        )


def averages(size: Size) -> None:
    """What power_ema=[0.05,0.1] adds to a U-Net's training step."""
    n, model = size.batch, ldm_unet(size.unet)
    x, t, y = torch.randn(n, 4, 16, 16), torch.rand(n), torch.randint(10, (n,))
    step = train_step(model, lambda: model(x, t, y), FUSED)
    trainer: Any = SimpleNamespace(global_step=0)
    module: Any = nn.ModuleDict({"net": model})
    kept = PowerAverages((0.05, 0.1))
    kept.on_train_start(trainer, module)

    def averaged() -> None:
        step()
        trainer.global_step += 1
        kept.on_train_batch_end(trainer, module)

    times = interleaved({"averaged": averaged, "plain": step}, size.rounds(15))
    row("U-Net step with power_ema=[0.05,0.1], without", times["averaged"], times["plain"])


def start(size: Size) -> None:
    """From a command's start to its first batch, and how much of it are imports."""
    bench_processes.start(size.rounds(3))


def memory(size: Size) -> None:
    """What a training step of the U-Net holds at most beyond its weights."""
    bench_processes.memory(size.unet, 4 * size.batch)


def encoding(size: Size) -> None:
    """A step of stage 2 that encodes its images itself, beside one on a cache."""
    bench_processes.encoding(batches=4 * size.rounds(15), rounds=size.rounds(3))


def cache(size: Size) -> None:
    """`ldm cache-latents` from files to shards, against encoding alone."""
    bench_latents.cache(ldm_autoencoder(size.autoencoder), size.images, size.rounds(3))


def latents(size: Size) -> None:
    """Reading cached moments in shuffled batches, beside five other ways to keep them."""
    bench_latents.latents(size.latents, size.rounds(5))


SECTIONS: dict[str, Callable[[Size], None]] = {
    f.__name__: f for f in (unet, averages, autoencoder, sampler, start, memory, encoding, cache, latents)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    torch.manual_seed(0)
    print(f"float32, {torch.get_num_threads()} threads, torch {torch.__version__}; medians; ratio > 1: ldm is faster\n")
    print("| what | ldm | peer | ratio |\n|---|---|---|---|")
    for name in given.sections or SECTIONS:
        SECTIONS[name](TINY if given.tiny else Size())


if __name__ == "__main__":
    main()
