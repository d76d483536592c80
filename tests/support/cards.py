"""Cards of checkpoints, right unless a test says otherwise."""

from typing import Any


def autoencoder_card(**changes: Any) -> dict[str, Any]:
    card = {
        "kind": "autoencoder",
        "autoencoder": {
            "channels": 8,
            "channel_mult": [1, 2],
            "num_res_blocks": 1,
            "latent_channels": 2,
            "norm_groups": 4,
        },
        "preprocessing": {"resolution": 8, "resize": 8, "filter": "bicubic"},
        "config": {},
        "batches_seen": 0,
        "images_seen": 0,
        "rollbacks": 0,
    }
    return card | changes


def diffusion_card(**changes: Any) -> dict[str, Any]:
    card = {
        "kind": "diffusion",
        "net": {
            "_target_": "ldm.models.unet.UNet",
            "in_channels": 2,
            "num_classes": 2,
            "model_channels": 8,
            "channel_mult": [1],
            "num_res_blocks": 1,
            "attention_resolutions": [],
            "head_channels": 8,
        },
        "objective": {
            "path": {"_target_": "ldm.diffusion.path.LinearPath"},
            "parameterization": "velocity",
            "weighting": {"_target_": "ldm.diffusion.weighting.Unweighted"},
            "time_sampler": {"_target_": "ldm.diffusion.times.Uniform"},
        },
        "sampling": {},
        "trust": [],
        "label_dropout": 0.1,
        "stats": {"mean": [0.0, 0.0], "std": [1.0, 1.0]},
        "latent_shape": [2, 4, 4],
        "class_names": ["cat", "dog"],
        "preprocessing": {"resolution": 8, "resize": 8, "filter": "bicubic"},
        "autoencoder": 16 * "0",
        "autoencoder_path": "../ae/checkpoints/00000000.ckpt",
        "config": {},
        "batches_seen": 0,
        "images_seen": 0,
        "rollbacks": 0,
    }
    return card | changes
