"""Networks that take turns on one device, each in the same setting: their seconds, FLOPs and memory.

jobs/bench/bench_gpu.py measures with this.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from gpu_rows import Bench, said
from timing import Task, interleaved, middle, wake
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from ldm.training.speed import CompileOption, compile_in_place, forward_flops

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a network runs, in conf/trainer's terms; by default as PyTorch runs it."""

    bf16: bool = False  # autocast
    channels_last: bool = False
    compile: CompileOption = False
    benchmark: bool = False  # cuDNN's
    fused: bool = False  # the optimiser
    flash: bool = True  # attention by fused kernels
    tf32: bool = False  # in matrix products; cuDNN's convolutions use it in any case

    @property
    def of_a_gpu(self) -> bool:
        """Whether it concerns GPUs alone."""
        return bool(self.compile) or self.bf16 or self.tf32

    @contextmanager
    def switched(self) -> Iterator[None]:
        """Sets PyTorch's global switches."""
        torch.backends.cudnn.benchmark = self.benchmark
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        with nullcontext() if self.flash else sdpa_kernel(SDPBackend.MATH):
            yield

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network, and what it does with a batch.

    Args:
        make:      makes the network; the caller chooses its device and memory layout.
        inputs:    makes the inputs of so many images.
        forward:   (net, *inputs) -> the output that the loss compares with a target.
        optimizer: (parameters, fused=...) -> the optimiser of a training step; None = the forward pass alone.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    forward: Callable[..., Tensor]
    optimizer: Callable[..., Optimizer] | None = None

    @cached_property
    def flops(self) -> float:
        """FLOPs of an image, counted from this network; a backward pass is counted as two forward ones."""
        with torch.device("meta"):
            net = self.make()
        return (1 if self.optimizer is None else 3) * forward_flops(net, *self.inputs(1))


Pair = dict[str, Contender]  # "ldm" and "diffusers"


def train_step(net: nn.Module, contender: Contender, setting: Setting, batch: int) -> Task:
    """The forward pass, the backward pass from a fixed target, and the optimiser's step."""
    assert contender.optimizer is not None
    optimizer, inputs = contender.optimizer(net.parameters(), fused=setting.fused), contender.inputs(batch)
    target = torch.randn_like(inputs[0])

    def step() -> None:
        optimizer.zero_grad()
        with setting.autocast(target.device):
            loss = (contender.forward(net, *inputs).float() - target).square().mean()
        loss.backward()
        optimizer.step()

    return step


def encoding(net: nn.Module, contender: Contender, setting: Setting, batch: int) -> Task:
    inputs = contender.inputs(batch)

    @torch.inference_mode()
    def encode() -> None:
        with setting.autocast(inputs[0].device):
            contender.forward(net, *inputs)

    return encode


def prepare(bench: Bench, contender: Contender, setting: Setting, batch: int) -> tuple[Task, dict[str, Any]]:
    """The task, compiled and warm, and its figures beside time; memory is that beyond what was held before."""
    start, trains = time.perf_counter(), contender.optimizer is not None
    torch.manual_seed(0)
    before = held() if bench.cuda else None
    with bench.device:
        net = contender.make().train(trains)
        net.to(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)
        wake(net)
        if setting.compile:
            compile_in_place(net, setting.compile)
        task = (train_step if trains else encoding)(net, contender, setting, batch)
    for _ in range(bench.warmups):
        task()
    if trains:
        check_gradients(net)
    figures = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "gflop_per_image": contender.flops / 1e9,
        "allocated_gib": None,
        "reserved_gib": None,
    }
    if before is not None:
        figures |= peak_memory(task, *before)
    return task, figures | {"prepared_s": round(time.perf_counter() - start, 1)}


def check_gradients(net: nn.Module) -> None:
    """Raises RuntimeError unless most weights have gradients: queries and keys over one token of context have none."""
    moved = [bool(p.grad is not None and p.grad.any()) for p in net.parameters() if p.dim() > 1]
    if sum(moved) < len(moved) / 2:
        raise RuntimeError(f"only {sum(moved)} of {len(moved)} weights have gradients: this is no training step")


def held() -> tuple[int, int]:
    """Bytes allocated and reserved, after the cache is emptied."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def peak_memory(task: Task, allocated: int, reserved: int) -> dict[str, float]:
    """Peak of one more call, in GiB beyond these bytes; workspaces that cuDNN tried while warming up do not count."""
    held()
    torch.cuda.reset_peak_memory_stats()
    task()
    torch.cuda.synchronize()
    return {
        "allocated_gib": (torch.cuda.max_memory_allocated() - allocated) / GIB,
        "reserved_gib": (torch.cuda.max_memory_reserved() - reserved) / GIB,
    }


def take_turns(bench: Bench, pair: Pair, setting: Setting, batch: int) -> dict[str, Any]:
    """Figures of both networks, which take turns; one that fails has an error; a ratio above 1 says: ldm is faster."""
    tasks: dict[str, Task] = {}
    figures: dict[str, Any] = {}
    for who, contender in pair.items():
        try:
            tasks[who], figures[who] = prepare(bench, contender, setting, batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise all kinds; the other one is worth having
            figures[who] = {"error": said(error)}
    times = interleaved(tasks, bench.rounds, bench.timed) if tasks else {}
    for who, seconds in times.items():
        rate = batch / middle(seconds)
        achieved = rate * figures[who]["gflop_per_image"] * 1e9
        mfu = achieved / bench.peak if bench.peak else None
        figures[who] |= {"images_per_s": rate, "tflops": achieved / 1e12, "mfu": mfu}
    if len(times) == 2:
        ratios = [peer / ldm for ldm, peer in zip(times["ldm"], times["diffusers"], strict=True)]
        figures |= {"ratio": middle(ratios), "min": min(ratios), "max": max(ratios)}
    return figures


def compare(
    bench: Bench, what: str, pair: Pair, setting: Setting, batch: int, against: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Adds a row, and returns its figures; where memory is too small, of half the batch or a quarter.

    `against` has another row's figures, of which this one's share is computed.

    CUDA graphs share one pool, so that with them the second network shows less memory than it takes.
    """
    figures: dict[str, Any] = {}
    for size in (batch, batch // 2, batch // 4):
        if bench.passes_over(what, needs_cuda=setting.of_a_gpu):
            return {}
        try:
            with setting.switched():
                figures = {"batch": size, "setting": vars(setting)} | take_turns(bench, pair, setting, size)
        except torch.OutOfMemoryError:
            bench.say(f"{what}: out of memory at batch {size}")
        except Exception as error:
            bench.failed(what, error)
            return {}
        finally:
            bench.clear()
        if figures:
            break
    else:
        bench.row(what, "failed, out of memory", error="out of memory")
        return {}
    for who in pair:
        if against and "images_per_s" in figures[who] and "images_per_s" in against[who]:
            figures[who]["of_recipe"] = figures[who]["images_per_s"] / against[who]["images_per_s"]
    bench.row(what, in_words(figures, list(pair)), **figures)
    return figures


def in_words(figures: dict[str, Any], names: list[str]) -> str:
    """A row's figures, of both networks and between them."""
    parts = [f"{who} {of_one(figures[who])}" for who in names]
    if "ratio" in figures:
        parts.append(f"ratio {figures['ratio']:.2f} ({figures['min']:.2f} to {figures['max']:.2f})")
    return "; ".join([f"batch {figures['batch']}", *parts])


def of_one(figures: dict[str, Any]) -> str:
    """The figures of one network."""
    if "error" in figures:
        return f"failed, {figures['error']}"
    text = f"{figures['images_per_s']:,.1f} images/s at {figures['tflops']:.3g} TFLOP/s"
    if figures["mfu"] is not None:
        text += f", MFU {figures['mfu']:.1%}"
    if "of_recipe" in figures:
        text += f", {figures['of_recipe']:.2f} of the recipe's"
    if figures["allocated_gib"] is not None:
        text += f", {figures['allocated_gib']:.1f} GiB allocated, {figures['reserved_gib']:.1f} reserved"
    return f"{text}, ready in {figures['prepared_s']:.0f} s"
