"""Networks that take turns on one device, each in the same setting: their seconds, FLOPs and memory. What
jobs/bench/bench_gpu.py measures with."""

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
    """How a network runs, as conf/trainer says; by default as PyTorch does."""

    bf16: bool = False  # autocast
    channels_last: bool = False
    compile: CompileOption = False
    benchmark: bool = False  # cuDNN's
    fused: bool = False  # the optimiser
    flash: bool = True  # and the other fused kernels of attention
    tf32: bool = False  # in matrix products; cuDNN's convolutions have it unless told otherwise

    @property
    def of_a_gpu(self) -> bool:
        """Whether a CPU would say nothing of it."""
        return bool(self.compile) or self.bf16 or self.tf32

    @contextmanager
    def switched(self) -> Iterator[None]:
        """With PyTorch's global switches so."""
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
        make: the network; its device and memory layout are chosen outside.
        inputs: of so many images.
        shapes: of one image's inputs, as `forward_flops` wants them.
        forward: (net, *inputs) -> what the loss compares.
        optimizer: (parameters, fused=...) where a step is trained; None computes forward alone.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    shapes: tuple[tuple[int, ...] | None, ...]
    forward: Callable[..., Tensor]
    optimizer: Callable[..., Optimizer] | None = None

    @cached_property
    def flops(self) -> float:
        """Of an image, by this network's own count; a backward pass costs two forward ones."""
        with torch.device("meta"):
            net = self.make()
        return (1 if self.optimizer is None else 3) * forward_flops(net, *self.shapes)


Pair = dict[str, Contender]  # "ours" and "theirs"


def train_step(net: nn.Module, contender: Contender, setting: Setting, batch: int) -> Task:
    """Forward, backward and the optimiser's step towards a fixed target."""
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
    """The task, compiled and warm, and what it takes beside time; memory is beyond what others held before."""
    start, trains = time.perf_counter(), contender.optimizer is not None
    torch.manual_seed(0)
    before = held() if bench.cuda else None
    with bench.device:
        net = contender.make().train(trains)
        net.to(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        wake(net)
        if setting.compile:
            compile_in_place(net, setting.compile)
        task = (train_step if trains else encoding)(net, contender, setting, batch)
    for _ in range(bench.warmups):
        task()
    if trains:
        check_gradients(net)
    found = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "gflop_per_image": contender.flops / 1e9,
        "allocated_gib": None,
        "reserved_gib": None,
    }
    if before is not None:
        found |= peak_memory(task, *before)
    return task, found | {"prepared_s": round(time.perf_counter() - start, 1)}


def check_gradients(net: nn.Module) -> None:
    """Most weights move: all but the queries and keys over a context of one token."""
    moved = [bool(p.grad is not None and p.grad.any()) for p in net.parameters() if p.dim() > 1]
    if sum(moved) < len(moved) / 2:
        raise RuntimeError(f"only {sum(moved)} of {len(moved)} weights have gradients: this is no training step")


def held() -> tuple[int, int]:
    """Bytes allocated and reserved, without what is only cached."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def peak_memory(task: Task, allocated: int, reserved: int) -> dict[str, float]:
    """Of one more call, in GiB beyond these: without the workspaces that were tried while it warmed up."""
    held()
    torch.cuda.reset_peak_memory_stats()
    task()
    torch.cuda.synchronize()
    return {
        "allocated_gib": (torch.cuda.max_memory_allocated() - allocated) / GIB,
        "reserved_gib": (torch.cuda.max_memory_reserved() - reserved) / GIB,
    }


def take_turns(bench: Bench, pair: Pair, setting: Setting, batch: int) -> dict[str, Any]:
    """Both networks in turns, each where it runs at all; the ratio is above 1 where ours is faster."""
    tasks: dict[str, Task] = {}
    found: dict[str, Any] = {}
    for who, contender in pair.items():
        try:
            tasks[who], found[who] = prepare(bench, contender, setting, batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise all kinds; the other one is worth having
            found[who] = {"error": said(error)}
    times = interleaved(tasks, bench.rounds, bench.timed) if tasks else {}
    for who, seconds in times.items():
        rate = batch / middle(seconds)
        achieved = rate * found[who]["gflop_per_image"] * 1e9
        mfu = achieved / bench.peak if bench.peak else None
        found[who] |= {"images_per_s": rate, "tflops": achieved / 1e12, "mfu": mfu}
    if len(times) == 2:
        ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
        found |= {"ratio": middle(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def compare(
    bench: Bench, what: str, pair: Pair, setting: Setting, batch: int, against: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A row; at half the batch, and half of that, where memory is too small. `against` is another row's figures.

    CUDA graphs share one pool, so that with them theirs shows less memory than it takes.
    """
    found: dict[str, Any] = {}
    for size in (batch, batch // 2, batch // 4):
        if bench.passes_over(what, needs_cuda=setting.of_a_gpu):
            return {}
        try:
            with setting.switched():
                found = {"batch": size, "setting": vars(setting)} | take_turns(bench, pair, setting, size)
        except torch.OutOfMemoryError:
            bench.say(f"{what}: out of memory at batch {size}")
        except Exception as error:
            bench.failed(what, error)
            return {}
        finally:
            bench.clear()
        if found:
            break
    else:
        bench.row(what, "failed, out of memory", error="out of memory")
        return {}
    for who in pair:
        if against and "images_per_s" in found[who] and "images_per_s" in against[who]:
            found[who]["of_recipe"] = found[who]["images_per_s"] / against[who]["images_per_s"]
    bench.row(what, in_words(found, list(pair)), **found)
    return found


def in_words(found: dict[str, Any], names: list[str]) -> str:
    """A row's figures."""
    parts = [f"{who} {of_one(found[who])}" for who in names]
    if "ratio" in found:
        parts.append(f"ratio {found['ratio']:.2f} ({found['min']:.2f} to {found['max']:.2f})")
    return "; ".join([f"batch {found['batch']}", *parts])


def of_one(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"failed, {found['error']}"
    text = f"{found['images_per_s']:,.1f} images/s at {found['tflops']:.3g} TFLOP/s"
    if found["mfu"] is not None:
        text += f", MFU {found['mfu']:.1%}"
    if "of_recipe" in found:
        text += f", {found['of_recipe']:.2f} of the recipe's"
    if found["allocated_gib"] is not None:
        text += f", {found['allocated_gib']:.1f} GiB allocated, {found['reserved_gib']:.1f} reserved"
    return f"{text}, ready in {found['prepared_s']:.0f} s"
