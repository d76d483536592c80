"""On one CUDA GPU, in bf16: the training step of LDM-8's U-Net and the encoding of KL-f8 at 256 px, beside diffusers'
on the same card, each in its variants; and a profile of a step.

    python jobs/bench_gpu.py [PROFILE.txt]

A line for each: images a second, MFU (of the card's bf16 peak, by Lightning's table), the most memory held.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hydra.utils import instantiate
from lightning.fabric.utilities.throughput import get_available_flops
from omegaconf import OmegaConf
from timing import middle
from torch import nn

from ldm.models.autoencoder import Autoencoder
from ldm.training.speed import forward_flops

CONF = Path(__file__).parents[1] / "conf"
BATCH, ROUNDS = 64, 20
VARIANTS: dict[str, dict[str, Any]] = {
    "nchw": {},
    "channels_last": {"layout": torch.channels_last},
    "channels_last, compiled": {"layout": torch.channels_last, "compile": "default"},
    "channels_last, compiled, CUDA graphs": {"layout": torch.channels_last, "compile": "reduce-overhead"},
}


def measured(task: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, by the GPU's own events, and GiB held at most."""
    for _ in range(5):
        task()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        task()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return middle(seconds), torch.cuda.max_memory_allocated() / 2**30


def prepared(
    make: Callable[[], nn.Module], layout: Any = torch.contiguous_format, compile: str | None = None
) -> nn.Module:
    model = make().cuda().to(memory_format=layout)  # type: ignore[call-overload]
    if compile is not None:
        torch.compiler.reset()  # no graphs of the variant before
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


def report(what: str, images: int, flops: float, task: Callable[[], Any]) -> None:
    try:
        seconds, memory = measured(task)
    except torch.cuda.OutOfMemoryError:
        print(f"| {what} | out of memory | | |", flush=True)
        return
    peak = get_available_flops(torch.device("cuda"), torch.bfloat16)
    mfu = f"{flops / seconds / peak:.1%}" if peak else "peak unknown"
    print(f"| {what} | {images / seconds:,.0f} | {mfu} | {memory:.1f} |", flush=True)


def unets(profile: Path | None) -> None:
    """Training steps at 4 x 32 x 32."""
    x, t = torch.randn(BATCH, 4, 32, 32, device="cuda"), torch.rand(BATCH, device="cuda")
    y = torch.randint(1000, (BATCH,), device="cuda")
    config = OmegaConf.load(CONF / "net/ldm_f8_395m.yaml")
    ours = partial(instantiate, config, in_channels=4, num_classes=1000, _convert_="all")
    theirs = partial(
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
    context = torch.randn(BATCH, 1, 512, device="cuda")
    flops = 3 * BATCH * forward_flops(ours(), (1, 4, 32, 32), (1,), None)
    for name, options in VARIANTS.items():
        model = prepared(ours, **options)
        step = train_step(model, lambda model=model: model(x, t, y))  # type: ignore[misc]
        report(f"U-Net step, ours, {name}", BATCH, flops, step)
        if profile is not None and name == "channels_last, compiled":
            with torch.profiler.profile() as seen:
                step()
            profile.write_text(seen.key_averages().table(sort_by="cuda_time_total", row_limit=40))
        del model, step
        model = prepared(theirs, **options)
        step = train_step(model, lambda model=model: model(x, 1000 * t, context).sample)  # type: ignore[misc]
        report(f"U-Net step, diffusers, {name}", BATCH, flops, step)
        del model, step


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
            net = prepared(lambda make=make: make().encoder, **options).eval()  # type: ignore[misc]

            @torch.inference_mode()
            def encode(net: nn.Module = net) -> None:
                with torch.autocast("cuda", torch.bfloat16):
                    net(x)

            report(f"KL-f8 encoding, {who}, {name}", BATCH, flops, encode)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("jobs/bench_gpu.py measures a CUDA GPU, and torch finds none here; make bench measures the CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, bf16, batch {BATCH}, torch {torch.__version__}\n")
    print("| what | images a second | MFU | GiB |\n|---|---|---|---|")
    unets(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    encoders()
