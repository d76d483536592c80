"""GPUs by name: how fast their dense matrix products are, and how much memory they have."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a network runs on.

    half:   TFLOP/s of dense products in `half_type`, accumulated in float32, at the boost clock
    single: TFLOP/s of convolutions in float32: TF32 on tensor cores where there are such, which is torch's default
    memory: GiB
    """

    name: str
    half: float
    single: float
    memory: float
    half_type: str = "bf16"

    def peak(self, precision: str) -> float:
        """FLOP/s under a precision of Lightning's Trainer."""
        kind = precision.partition("-")[0]
        return 1e12 * (self.half if kind in ("bf16", "16") else self.single / 2 if kind == "64" else self.single)


def _gpu(half: float, single: float, memory: float, half_type: str = "bf16") -> dict[str, float | str]:
    return {"half": half, "single": single, "memory": memory, "half_type": half_type}


# From NVIDIA's data sheets and architecture whitepapers. Where they give products of sparse matrices, half of that.
# GeForce: half precision accumulated in float32, as training has it, is half as fast there as accumulated in itself.
GPUS = {
    "rtx3060": _gpu(25.5, 12.7, 12),  # GA102 whitepaper's rates an SM and clock: 28 SMs at 1.78 GHz
    "rtx3090": _gpu(71, 35.6, 24),  # GA102 whitepaper, table 3
    "rtx4090": _gpu(165.2, 82.6, 24),  # Ada whitepaper, appendix A
    "rtx5090": _gpu(209.5, 104.8, 32),  # RTX Blackwell whitepaper, appendix A
    "v100": _gpu(125, 15.7, 16, "fp16"),  # V100 data sheet, SXM2; no bf16, no TF32
    "t4": _gpu(65, 8.1, 15, "fp16"),  # T4 data sheet; of its 16 GB, error correction takes 1
    "l4": _gpu(121, 60, 23),  # L4 data sheet; of its 24 GB, error correction takes 1
    "a10g": _gpu(70, 35, 23),  # A10G data sheet
    "a100": _gpu(312, 156, 40),  # A100 data sheet
    "a100_80gb": _gpu(312, 156, 80),
    "h100": _gpu(989, 495, 80),  # H100 data sheet, SXM
    "h200": _gpu(989, 495, 141),  # H200 data sheet, SXM
    "b200": _gpu(2250, 1125, 180),  # DGX B200 data sheet, an eighth
}
CPU = "cpu"


def named(name: str) -> Device:
    """The GPU of this name.

    Raises:
        ValueError: if it is not in the table.
    """
    known = GPUS.get(name.lower().replace("-", "_"))
    if known is None:
        raise ValueError(
            f"gpu={name} is not in the table: {', '.join(GPUS)} or {CPU}; or give its numbers, tflops= and memory_gb="
        )
    return Device(name=name, **known)  # type: ignore[arg-type]
