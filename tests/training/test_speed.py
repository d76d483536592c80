"""What the speed's figures are shares of."""

import pytest
import torch

from ldm.training.speed import peak_flops


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_peaks_are_of_dense_products(card, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: card)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak
