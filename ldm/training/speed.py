"""How fast training is, and what its time is spent on."""

import time
from collections import defaultdict
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ldm.condition import Condition
from ldm.training.lightning_internals import batches_stepped, get_available_flops

CompileOption = bool | str  # trainer.compile
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")


def half_of(precision: Any) -> torch.dtype | None:
    """The type of half precision of trainer.precision; None if it has none."""
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(str(precision).partition("-")[0])


class Clock:
    """Marks in time. On a GPU a mark is an event in its queue, which is waited for only when the mark is read."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        if not self.cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


class Speed(Callback):
    """Logs, as means over the last log_every_n_steps batches:

    speed/images_per_s   over all ranks
    speed/data_s, forward_s, backward_s, optimizer_s, rest_s   a batch's seconds; backward includes the ranks' exchange,
        rest the average and the log
    speed/tflops   per rank, by `flops_per_image`; speed/mfu, its share of the device's peak where that is known
    speed/gpu_memory_gb   the most that was held

    Validations and saves are left out.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.flops = pl_module.flops = pl_module.flops_per_image()  # type: ignore[operator]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = Clock(pl_module.device)
        self.marks: list[tuple[str, Any]] = [("start", self.clock.mark())]
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(lambda *_: self._mark("backward"))
            optimizer.register_step_post_hook(lambda *_: self._mark("optimizer"))

    def _mark(self, what: str) -> None:
        """Note that the time since the last mark was spent on this."""
        self.marks.append((what, self.clock.mark()))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark("start")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._mark("data")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self._mark("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark("backward")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._mark("rest")
        done = batches_stepped(trainer) + 1
        if done % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict({f"speed/{name}": value for name, value in self._take(trainer, pl_module).items()})

    def _take(self, trainer: Trainer, module: Any) -> dict[str, float]:
        spent: dict[str, float] = defaultdict(float)
        batches = 0
        for (_, before), (what, now) in zip(self.marks[:-1], self.marks[1:], strict=True):
            if what != "start":
                spent[what] += self.clock.seconds(before, now)
                batches += what == "data"
        self.marks = self.marks[-1:]
        step = sum(spent.values()) / batches
        logged = {f"{what}_s": total / batches for what, total in spent.items()}
        logged["images_per_s"] = module.global_batch / step
        if self.flops:
            achieved = self.flops * module.batch_size / step
            logged["tflops"] = achieved / 1e12
            peak = peak_flops(module.device, half_of(trainer.precision) or torch.float32)
            if peak:
                logged["mfu"] = achieved / peak
        if self.clock.cuda:
            logged["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        return logged


class Compiled(Callback):
    """Compiles modules in place, which leaves the names of weights as they are; once their FLOPs are counted."""

    def __init__(self, modules: list[nn.Module], how: CompileOption) -> None:
        self.modules, self.how = modules, how

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for module in self.modules:
            compile_in_place(module, self.how)


def compile_in_place(net: nn.Module, how: CompileOption) -> None:
    """As trainer.compile says: true, or the name of a mode of torch.compile."""
    net.compile(mode=how if isinstance(how, str) else None)


# of half precision; Lightning's table has sparse products there, and the H200 by another name than the driver's
DENSE_FLOPS = {"NVIDIA H200": 989.4e12, "NVIDIA H200 NVL": 835e12, "NVIDIA H100 NVL": 835e12}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Of dense matrix products; None where it is unknown. By Lightning's table, but for DENSE_FLOPS."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        known = DENSE_FLOPS.get(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return get_available_flops(device, dtype)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def forward_flops(net: nn.Module, *inputs: Tensor | Condition) -> float:
    """Floating-point operations of a forward pass, counted without computing; 0 where torch can't foresee it, as in a
    network that looks at its own values. Of the inputs only shapes and types matter."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        tensors = (*net.named_parameters(), *net.named_buffers())
        state = {name: _empty_like(tensor) for name, tensor in tensors}
        arguments = tuple(
            given.each(_empty_like) if isinstance(given, Condition) else _empty_like(given) for given in inputs
        )
        try:
            functional_call(net, state, arguments)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
            return 0.0
    return float(counter.get_total_flops())
