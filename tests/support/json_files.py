"""Right files of each JSON format, as plain data."""

from typing import Any

from ldm.commands.sweep_points import PointFile
from ldm.data.formats import Manifest, ShardCard, ShardIndex, Verified
from ldm.evaluation.result_files import LikelihoodFile, MetricsFile, SampleStamp
from ldm.runtime.lock import Holder
from ldm.runtime.schema import JsonFile
from ldm.training.resume import Rollbacks

H16, H64 = 16 * "0", 64 * "0"
IDENTITY = {
    "format": 1,
    "autoencoder": H16,
    "preprocessing": {"resolution": 32},
    "views": 2,
    "dtype": "float16",
    "class_names": ["cat", "dog"],
}
RIGHT: dict[type[JsonFile], dict[str, Any]] = {
    ShardIndex: {
        "format": 2,
        "class_names": ["cat", "dog"],
        "shards": {
            "train": [{"name": "train-000000.tar", "count": 8, "bytes": 10240, "sha256": H64}],
            "val": [{"name": "val-000000.tar", "count": 2, "bytes": 10240, "sha256": H64}],
        },
    },
    Manifest: IDENTITY
    | {
        "shape": [4, 8, 8],
        "count": {"train": 8, "val": 2},
        "mean": [0.0, 0.1],
        "std": [1.0, 0.9],
        "shards": {
            "train": [{"name": "train-000000.tar", "count": 8, "bytes": 10240, "sha256": H64}],
            "val": [{"name": "val-000000.tar", "count": 2, "bytes": 10240, "sha256": H64}],
        },
    },
    ShardCard: {
        "identity": IDENTITY,
        "images": H16,
        "files": H16,
        "content": H16,
        "shape": [4, 8, 8],
        "count": 8,
        "bytes": 10240,
        "sha256": H64,
        "sums": {"count": 8, "first": [0.0, 1.0], "second": [8.0, 9.0]},
    },
    Verified: {"format": 1, "shards": {"train-000000.tar": [H64, 1, 2, 3]}},
    Rollbacks: {"rollbacks": 1, "to": "00000004", "at": 9},
    PointFile: {
        "config": {"optimizer": {"lr": 0.1}},
        "finished": True,
        "value": 0.5,
        "error": None,
        "command": "train-diffusion",
        "swept": {"objective": "flow"},
        "choices": {"objective": "flow", "logger": None},
        "log": None,
    },
    SampleStamp: {
        "sha256": H16,
        "model": H16,
        "model_path": "../diffusion",
        "autoencoder": H16,
        "autoencoder_path": "../latents/autoencoder.ckpt",
        "num": 4,
        "class_names": ["cat", "dog"],
        "classes": "all, in turn",
        "preprocessing": {"resolution": 32},
        "weights": "ema",
        "path": "as trained",
        "sampler": {"function": "heun", "steps": 8},
        "grid": {"function": "uniform"},
        "guidance": 1.0,
        "guidance_interval": [0.0, 1.0],
        "guidance_rescale": 0.0,
        "weak": None,
        "seed": 0,
        "batches_trained": 4,
        "evaluations": 16.0,
        "precision": "float32",
    },
    MetricsFile: {"frechet_distance": {"value": 0.5, "depends": {}}, "samples": {}, "versions": {"ldm": "0.2"}},
    LikelihoodFile: {"weights": "ema", "latent_bits_per_dim": 1.0},
    Holder: {
        "command": "sample",
        "host": "here",
        "where": "this start of here",
        "pid": 1,
        "began": 5,
        "since": "2026-01-01",
        "job": "",
        "restarts": "0",
        "token": H16,
    },
}
