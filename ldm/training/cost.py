"""What a command costs on a device: memory by parts, images a second, hours, disk."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from ldm.runtime.gpus import CPU, Device
from ldm.runtime.memory import machine_memory
from ldm.training.speed import peak_flops

GIB = 2**30
RESERVED = 1 * GIB  # of a GPU: CUDA's context and its libraries' workspaces
SIDE, ROUNDS = 1024, 8  # of the matrix products that measure a CPU
Parts = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command needs, whatever it runs on.

    parameters: that are trained, or used
    flops:      of an image
    images:     that pass in all; None where it is unknown
    a_step:     of these, how many together on a device
    ranks:      devices
    precision:  trainer.precision
    memory:     bytes of a device at the worst moment, by parts
    disk:       bytes, by parts
    said:       what was taken from where, a line each
    """

    parameters: int
    flops: float
    images: int | None
    a_step: int
    ranks: int
    precision: str
    memory: Parts
    disk: Parts
    said: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Bytes of a device at the worst moment."""
        return sum(self.memory.values())

    def images_per_s(self, device: Device, share: float) -> float:
        """Of one device that does this share of its peak; 0 where FLOPs cannot be counted."""
        return share * device.peak(self.precision) / self.flops if self.flops else 0.0

    def hours(self, device: Device, share: float) -> float | None:
        """On all devices; None where the images or their FLOPs are unknown."""
        rate = self.ranks * self.images_per_s(device, share)
        return None if self.images is None or rate == 0 else self.images / rate / 3600

    def fits(self, device: Device) -> bool:
        return self.peak <= room(device)


def room(device: Device) -> float:
    """Bytes that a command may fill."""
    return device.memory * GIB - (0 if device.name == CPU else RESERVED)


def this_machine() -> Device:
    """Its first GPU, or its CPU."""
    if not torch.cuda.is_available():
        return this_cpu()
    properties = torch.cuda.get_device_properties(0)
    peaks = {kind: peak_flops(torch.device("cuda", 0), kind) for kind in (torch.bfloat16, torch.float32)}
    if not all(peaks.values()):
        raise ValueError(f"the peak of {properties.name} is not known: pass tflops= (dense, in training's precision)")
    half, single = (float(peak or 0) / 1e12 for peak in peaks.values())
    return Device(name=properties.name, half=half, single=single, memory=properties.total_memory / GIB)


def this_cpu(tflops: float | None = None) -> Device:
    """This machine's CPU; its peak is what a matrix product in float32 reaches here, unless it is given."""
    tflops = matrix_product() / 1e12 if tflops is None else tflops
    return Device(name=CPU, half=tflops, single=tflops, memory=machine_memory() / GIB, half_type="bf16")


def matrix_product() -> float:
    """FLOP/s of a product of large matrices in float32: the fastest of a few."""
    a, best = torch.rand(SIDE, SIDE), float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best


def checkpoint_bytes(module: Any, optimizer_state: float) -> float:
    """Bytes of a checkpoint: averaged and raw weights, and the optimisers' state."""
    state = module.state_dict(keep_vars=True).values()  # which copies nothing
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in state) + optimizer_state
