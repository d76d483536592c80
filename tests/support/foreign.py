"""Small networks and tensors, to be written as other programs do."""

import torch

SHAPE = {"channels": 32, "channel_mult": [1], "num_res_blocks": 1, "latent_channels": 4}
NET = {
    "in_channels": 4, "num_classes": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1,
    "attention_resolutions": [], "head_channels": 16,
}  # fmt: skip
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3)}
