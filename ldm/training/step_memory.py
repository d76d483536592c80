"""How much memory a training step takes, by one step of the real module on tensors without values.

The step runs under torch's fake tensors: shapes, types and lifetimes are those of a real step on a CPU, so that 400
million parameters are followed in seconds, without their memory. What is alive is counted storage by storage.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.plugins import DoublePrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.speed import half_of

DEVICE_OF, VALUE_OF = torch.ops.prim.device.default, torch.ops.aten._local_scalar_dense.default
SMALL = (64, 64)  # the parameter on which an optimiser's state is measured
Module = AutoencoderModule | DiffusionModule


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes at the moment of a step at which most are alive, by what they are."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float  # with the batch, and all that comes and goes

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def step_memory(module: Module, batch: tuple[Any, ...], precision: str, *, gpu: bool) -> StepMemory:
    """The memory of a step.

    Args:
        module:    of either stage, its networks on the meta device; it is of no use afterwards
        batch:     as the loader makes it, on the meta device
        precision: trainer.precision
        gpu:       whether half precision is as on a GPU
    """
    trainer = _alone(module)
    if precision.startswith("64"):
        module.double()
    elif gpu and half_of(precision):
        _norms_in_float32(module)
    with _no_values():
        _without_values(module)
        trainer.optimizers = module.configure_optimizers()
        players = [_parameters_of(optimizer) for optimizer in trainer.optimizers]
        with Live([*module.parameters(), *module.buffers()]) as live:
            for optimizer in trainer.optimizers:
                _after_a_step(optimizer)
            _step(module, _emptied(batch), precision)
        gradients = sum(map(_bytes, players))
    makers = module.make_optimizers if isinstance(module, AutoencoderModule) else (module.make_optimizer,)
    left_out = tuple(f"{name}." for name in module.not_averaged)
    return StepMemory(
        weights=_bytes([*module.parameters(), *module.buffers(), *_lpips(module)]),
        gradients=gradients,
        optimizer=sum(state_share(make) * _bytes(player) for make, player in zip(makers, players, strict=True)),
        average=_bytes(p for name, p in module.named_parameters() if p.requires_grad and not name.startswith(left_out)),
        activations=max(0, live.peak - gradients),
    )


def evaluation_memory(net: nn.Module, call: Callable[..., Any], *inputs: Tensor) -> float:
    """Bytes that live at most, beside a network's weights, while it is evaluated by call(net, *inputs) on inputs of
    these shapes without gradients. Network and inputs are on the meta device."""
    copied = deepcopy(net).eval()
    with _no_values(), torch.no_grad():
        copied.to_empty(device="cpu")
        with Live([*copied.parameters(), *copied.buffers()]) as live:
            call(copied, *map(_empty, inputs))
    return live.peak


def state_share(make: Callable[[Iterable[Parameter]], Optimizer]) -> float:
    """Bytes of an optimiser's state for each byte of its parameters, measured on a small one: 2 of Adam's."""
    small = Parameter(torch.zeros(SMALL))
    small.grad = torch.zeros(SMALL)
    optimizer = make([small])
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return _bytes(tensor for tensor in held if tensor.dim() > 0) / _bytes([small])  # but for counters


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are made while it is on, as long as they live.

    A value that the code looks at is taken for 1, or true, for there are none.

    Args:
        weights: tensors that were there before; views of them take nothing
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in weights)}
        self.now = self.peak = 0
        self.alive: dict[int, tuple[int, Any]] = {}  # by a storage's id: its bytes, and what tells of its end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF and isinstance(args[0], FakeTensor):  # most calls are this one, and the long way is slow
            return args[0].fake_device
        if func is VALUE_OF and isinstance(args[0], FakeTensor):
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self.alive and key not in self.before:
            self.alive[key] = storage.nbytes(), weakref.ref(storage, partial(self._gone, key))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, _: Any) -> None:
        self.now -= self.alive.pop(key)[0]


def _norms_in_float32(module: nn.Module) -> None:
    """Norms under autocast as CUDA's has them: the CPU's leaves them in half precision."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            part.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


class _Alone:
    """What a stage asks of Lightning's Trainer in a step: one process, without a loss scaler."""

    world_size, global_rank, precision_plugin, model = 1, 0, None, None

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []
        self.strategy = SimpleNamespace(backward=lambda loss, _: loss.backward())


def _alone(module: Module) -> _Alone:
    """Let a module do a step without Lightning's loop, which would log and count; stage 1 in a batch that has all
    terms of its loss, the discriminator's and its penalty among them, if the run gets that far."""
    trainer: Any = _Alone()
    module.trainer = trainer
    stand_ins: dict[str, Callable[..., Any]] = {
        "log": lambda *_, **__: None,
        "manual_backward": lambda loss: loss.backward(),
        "optimizers": lambda: trainer.optimizers,
    }
    for name, stand_in in stand_ins.items():
        setattr(module, name, stand_in)
    if isinstance(module, AutoencoderModule) and module.loss.disc_weight > 0:
        loss = module.loss
        since = loss.disc_warmup + loss.disc_ramp
        since += -since % loss.r1_every if loss.r1 > 0 else 0
        module.batches_seen = min(loss.disc_start + since, module.card["config"]["steps"] - 1)
    return trainer


def _after_a_step(optimizer: Optimizer) -> None:
    """Let an optimiser hold what it holds after a step: gradients, until they are cleared. Its own next step makes
    nothing that stays, and is left out."""
    held = [torch.empty(_bytes(_parameters_of(optimizer)), dtype=torch.uint8)]
    clear = optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        held.clear()
        clear(set_to_none)

    stand_ins: dict[str, Callable[..., Any]] = {"zero_grad": zero_grad, "step": lambda *_, **__: None}
    for name, stand_in in stand_ins.items():
        setattr(optimizer, name, stand_in)


def _step(module: Module, batch: tuple[Any, ...], precision: str) -> None:
    """A batch as Lightning treats it."""
    with _arithmetic(precision):
        loss = module.training_step(batch, 0)  # type: ignore[arg-type]
    if isinstance(loss, Tensor):  # of stage 2; stage 1 does all itself
        loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _no_values() -> Iterator[None]:
    """Fake tensors, which ask before each operation whether there is a GPU: here once. Collecting garbage meanwhile
    would take as long as the step, and frees nothing."""
    collects, there = gc.isenabled(), torch.cuda.is_available()
    gc.disable()
    try:
        with patch.object(torch.cuda, "is_available", lambda: there), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _arithmetic(precision: str) -> Iterator[None]:
    kind = half_of(precision)
    if kind is not None:
        with torch.autocast("cpu", kind, cache_enabled=False):  # as Lightning's
            yield
    elif precision.startswith("64"):
        with DoublePrecision().train_step_context():
            yield
    else:
        yield


def _without_values(module: Module) -> None:
    """Move what lies on the meta device into the mode that is on."""
    for part in module.children():
        if any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers())):
            part.to_empty(device="cpu")


def _emptied(part: Any) -> Any:
    """A batch of either stage, each of its tensors as `_empty` has it."""
    if isinstance(part, Tensor):
        return _empty(part)
    if isinstance(part, dict):
        return {name: _emptied(each) for name, each in part.items()}
    if isinstance(part, tuple):
        inner = [_emptied(each) for each in part]
        return type(part)(*inner) if hasattr(part, "_fields") else tuple(inner)
    return part


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _lpips(module: Module) -> list[Tensor]:
    """Stage 1's weights that belong to no module: validations need them where training does not."""
    if not isinstance(module, AutoencoderModule):
        return []
    net = module.loss.perceptual.net
    return [*net.parameters(), *net.buffers()]


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
