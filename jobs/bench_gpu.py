"""On one CUDA GPU, in bf16: the training step of LDM-8's U-Net and the encoding of KL-f8 at 256 px, beside diffusers'
on the same card, each in its variants; and a profile of a step.

    python jobs/bench_gpu.py [unets] [encoders] [profile]

A line for each: images a second, MFU (of the card's dense bf16 peak), GiB that PyTorch reserved at most (CUDA graphs
hold memory that no allocation counts). A network that fails is a line, too.
"""

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timing import middle
from torch import nn

from ldm.models.autoencoder import Autoencoder
from ldm.training.speed import forward_flops, peak_flops

CONF = Path(__file__).parents[1] / "conf"
BATCH, ROUNDS = 64, 20
VARIANTS: dict[str, dict[str, Any]] = {
    "nchw": {},
    "channels_last": {"layout": torch.channels_last},
    "channels_last, compiled": {"layout": torch.channels_last, "compile": "default"},
    "channels_last, compiled, CUDA graphs": {"layout": torch.channels_last, "compile": "reduce-overhead"},
}


def measured(task: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, by the GPU's own events, and GiB reserved at most."""
    for _ in range(5):
        task()
    seconds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        task()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return middle(seconds), torch.cuda.max_memory_reserved() / 2**30


def prepared(
    make: Callable[[], nn.Module], layout: Any = torch.contiguous_format, compile: str | None = None
) -> nn.Module:
    """A network on the GPU, and nothing of the one before it: no graphs, no memory."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = make().cuda().to(memory_format=layout)  # type: ignore[call-overload]
    if compile is not None:
        model.compile(mode=compile)
    return model


def train_step(model: Any, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward().float().square().mean()
        loss.backward()
        optimizer.step()

    return step


def report(what: str, images: int, flops: float, make: Callable[[], Callable[[], Any]]) -> None:
    """A line of the table: of the task that `make` prepares, or of why it failed."""
    try:
        seconds, memory = measured(make())
    except Exception as error:  # compilers raise all kinds; the other lines are worth having
        print(f"| {what} | {type(error).__name__}: {str(error).partition(chr(10))[0][:100]} | | |", flush=True)
        return
    peak = peak_flops(torch.device("cuda"), torch.bfloat16)
    mfu = f"{flops / seconds / peak:.1%}" if peak else "peak unknown"
    print(f"| {what} | {images / seconds:,.0f} | {mfu} | {memory:.1f} |", flush=True)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, t, y at 4 x 32 x 32."""
    t, y = torch.rand(BATCH, device="cuda"), torch.randint(1000, (BATCH,), device="cuda")
    return torch.randn(BATCH, 4, 32, 32, device="cuda"), t, y


def our_unet() -> nn.Module:
    config = OmegaConf.load(CONF / "net/ldm_f8_395m.yaml")
    return instantiate(config, in_channels=4, num_classes=1000, _convert_="all")


def our_step(options: dict[str, Any]) -> Callable[[], None]:
    model, (x, t, y) = prepared(our_unet, **options), batch()
    return train_step(model, lambda: model(x, t, y))


def their_step(options: dict[str, Any]) -> Callable[[], None]:
    make = partial(
        UNet2DConditionModel,
        in_channels=4,
        out_channels=4,
        block_out_channels=(256, 512, 1024),
        layers_per_block=2,
        cross_attention_dim=512,
        attention_head_dim=(8, 16, 32),  # the number of heads, in spite of its name
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    )
    model, (x, t, _), context = prepared(make, **options), batch(), torch.randn(BATCH, 1, 512, device="cuda")
    return train_step(model, lambda: model(x, 1000 * t, context).sample)


def unets() -> None:
    """Training steps."""
    flops = 3 * BATCH * forward_flops(our_unet(), (1, 4, 32, 32), (1,), None)
    for name, options in VARIANTS.items():
        report(f"U-Net step, ours, {name}", BATCH, flops, partial(our_step, options))
        report(f"U-Net step, diffusers, {name}", BATCH, flops, partial(their_step, options))


def profile() -> None:
    """Where the time of our compiled training step goes."""
    step = our_step(VARIANTS["channels_last, compiled"])
    measured(step)
    with torch.profiler.profile() as seen:
        step()
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=40), flush=True)


def encoders() -> None:
    """Encoding at 256 px."""
    x = torch.randn(BATCH, 3, 256, 256, device="cuda")
    config = OmegaConf.to_container(OmegaConf.load(CONF / "vae/kl_f8.yaml"))
    ours = partial(Autoencoder, **config)  # type: ignore[arg-type]
    theirs = partial(
        AutoencoderKL,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    flops = BATCH * forward_flops(ours().encoder, (1, 3, 256, 256))
    for name, options in VARIANTS.items():
        for who, make in (("ours", ours), ("diffusers", theirs)):

            def prepare(make: Callable[[], Any] = make, options: dict[str, Any] = options) -> Callable[[], None]:
                net = prepared(lambda: make().encoder, **options).eval()

                @torch.inference_mode()
                def encode() -> None:
                    with torch.autocast("cuda", torch.bfloat16):
                        net(x)

                return encode

            report(f"KL-f8 encoding, {who}, {name}", BATCH, flops, prepare)


SECTIONS = {"unets": unets, "encoders": encoders, "profile": profile}


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("jobs/bench_gpu.py measures a CUDA GPU, and torch finds none here; make bench measures the CPU")
    if unknown := set(sys.argv[1:]) - set(SECTIONS):
        sys.exit(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    chosen = [SECTIONS[name] for name in sys.argv[1:] or SECTIONS]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, bf16, batch {BATCH}, torch {torch.__version__}\n")
    print("| what | images a second | MFU | GiB |\n|---|---|---|---|")
    for section in chosen:
        section()
