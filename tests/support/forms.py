"""The digits as somebody's images, in the forms that `ldm evaluate` accepts, and what it wrote."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.json_files import RIGHT

from ldm.data.sources import Digits
from ldm.evaluation.image_sets import SourceSet
from ldm.evaluation.result_files import SampleStamp
from ldm.runtime.files import sha256

ALONE = ["reconstruction=false"]


def metrics(run="metrics"):
    return json.loads(Path(f"runs/{run}/metrics.json").read_text())


def stamp(file, **changes):
    """What `ldm sample` says of its samples.npz, as sample.json has it, right unless a test says otherwise."""
    of_digits = {"num": 297, "class_names": [str(i) for i in range(10)], "preprocessing": None}
    return RIGHT[SampleStamp] | {"sha256": sha256(Path(file))[:16]} | of_digits | changes


def digits(split="train"):
    images, labels = zip(*SourceSet(Digits(resolution=32), (split,)).batches(500, 0, 0, 1), strict=True)
    return torch.cat(images), torch.cat(labels)


def as_npz(images, labels, path):
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    return path


def as_folder(images, labels, folder):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = Path(folder, str(int(label)), f"{i:05d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder
