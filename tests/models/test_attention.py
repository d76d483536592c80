"""Attention runs in fused kernels, which hold no matrix of all pairs of positions."""

import pytest
import torch
import torch.nn.functional as F

from ldm.models.attention import AttentionBlock, SpatialTransformer
from ldm.models.autoencoder import AttnBlock

BLOCKS = {
    "unet": lambda: (AttentionBlock(64, 4, qk_norm=False), (None, None, None)),
    "unet, normalised": lambda: (AttentionBlock(64, 4, qk_norm=True), (None, None, None)),
    "transformer": lambda: (SpatialTransformer(64, 4, 16, qk_norm=False), (None, torch.randn(2, 1, 16), None)),
    "autoencoder": lambda: (AttnBlock(64, 32), ()),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", BLOCKS)
def test_attention_takes_a_fused_kernel_in_either_memory_layout(monkeypatch, name, layout):
    block, more = BLOCKS[name]()
    choices, attend = [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None):
        choices.append(torch._fused_sdp_choice(q, k, v, attn_mask))
        return attend(q, k, v, attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    block.to(memory_format=layout)
    block(torch.randn(2, 64, 8, 8).to(memory_format=layout), *more)
    assert choices
    assert 0 not in choices  # the one that multiplies matrices
