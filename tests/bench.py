"""`make bench`: a training step of our networks beside diffusers' of the same shape, interleaved in one process."""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch import nn

from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet

ROUNDS = 7


def train_step(model: nn.Module, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        forward().square().mean().backward()
        optimizer.step()

    return step


def compare(name: str, ours: Callable[[], None], theirs: Callable[[], None]) -> None:
    """Print the median time of each and the median of the ratios, pair by pair."""
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for times, step in zip(seconds, (ours, theirs), strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds[0][1:], seconds[1][1:], strict=True)]
    medians = [statistics.median(times[1:]) for times in seconds]
    print(
        f"{name:22} ours {medians[0]:.3f} s   diffusers {medians[1]:.3f} s   ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def unets() -> tuple[Callable[[], None], Callable[[], None]]:
    ours = UNet(in_channels=4, num_classes=10, model_channels=96, channel_mult=(1, 2, 4), num_res_blocks=2,
                attention_resolutions=(2, 4), head_channels=32)  # fmt: skip
    theirs = UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 192, 384),
        layers_per_block=2,
        attention_head_dim=32,
        num_class_embeds=11,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    x, t, y = torch.randn(16, 4, 16, 16), torch.rand(16), torch.randint(10, (16,))
    return (
        train_step(ours, lambda: ours(x, t, y)),
        train_step(theirs, lambda: theirs(x, 1000 * t, class_labels=y).sample),
    )


def autoencoders() -> tuple[Callable[[], None], Callable[[], None]]:
    ours = Autoencoder(channels=64, channel_mult=(1, 2, 4), num_res_blocks=1, latent_channels=4)
    theirs = AutoencoderKL(
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    )
    x = torch.randn(4, 3, 64, 64)
    return (
        train_step(ours, lambda: ours(x)[0]),
        train_step(theirs, lambda: theirs(x, sample_posterior=True).sample),
    )


if __name__ == "__main__":
    print(f"training steps, float32, {torch.get_num_threads()} threads, median of {ROUNDS} interleaved rounds")
    compare("U-Net, 4x16x16, B 16", *unets())
    compare("autoencoder, 64 px, B 4", *autoencoders())
