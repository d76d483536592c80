"""`condition=upscale` from the cache to pictures of any size; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.captioned import FOLDER, captioned
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_pictures, assert_same_training
from support.tiny import CPU, TINY_DIFFUSION, fails

from ldm.checkpoint import load_diffusion
from ldm.conditioning.low_resolution import Upscale
from ldm.data.cache_reader import CachedMoments, LatentCache

UPSCALE = [*TINY_DIFFUSION, *CPU, "latents=runs/kept", "condition=upscale", "condition.factor=2", "batch_size=4"]
FEW = ["sampler=euler", "sampler.steps=2"]


@pytest.fixture
def kept(there):
    """The command, beside a cache of mirrored pictures and their small copies."""
    captioned(Path("photos"))
    there("cache-latents", "run=kept", *FOLDER, "low_resolution=16", "data.flip=true")
    return there


def read(name):
    with Image.open(name) as image:
        return np.asarray(image.convert("RGB"))


def test_small_copies_are_mirrored_with_their_latents(kept):
    cache = LatentCache("runs/kept", "full")
    data = CachedMoments(cache, "train", conditioning=Upscale(factor=2))
    first, second = (data.__getitems__([(epoch, 3)]).told["low"] for epoch in (0, 1))
    assert first.shape == (1, 3, 16, 16)
    assert np.array_equal(first, second.flip(-1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("net", [[], ["net=dit_digits", "net.model_channels=24", "net.depth=2"]], ids=["unet", "dit"])
def test_from_training_to_pictures(kept, net):
    options = [option for option in UPSCALE if not (net and option.startswith("net."))] + net
    kept("train-diffusion", *options, "run=whole")
    kept("train-diffusion", *options, "run=parts", "steps=2")
    kept("train-diffusion", *options, "run=parts")
    assert_same_training("runs/whole", "runs/parts", "diffusion")
    card = load_diffusion("runs/whole").card
    assert card["net"]["concat_channels"] == 13  # 2 x 2 pixels of 3 channels a cell, and the level
    given = ["model=runs/whole", "images=photos", "num=3", "draws=2", *FEW]
    kept("upscale", "run=a", *given, "shrink=true", "classes=folders", "batch_size=3")
    kept("upscale", "run=b", *given, "shrink=true", "classes=a", "batch_size=64")
    first, second = (read(f"runs/{run}/images/a/00-1.png").astype(int) for run in "ab")
    assert first.shape == (32, 32, 3)
    assert abs(first - second).max() <= 1  # batches change nothing
    said = json.loads(Path("runs/a/upscale.json").read_text())
    assert (said["pictures"], said["draws"], said["factor"]) == (3, 2, 2)
    assert said["psnr"]["bicubic"] > 20 > said["psnr"]["draw"]  # of noisy colours, against an untrained network
    for name, size in (("one", (16, 16)), ("two", (24, 16)), ("three", (21, 17))):
        Path("small").mkdir(exist_ok=True)
        Image.fromarray(np.full((*size[::-1], 3), 90, dtype=np.uint8)).save(f"small/{name}.png")
    kept("upscale", "run=c", "model=runs/whole", "images=small", "draws=1", "noise=0.2", *FEW)
    shapes = {path.stem: read(path).shape[:2] for path in Path("runs/c/images").iterdir()}
    assert shapes["one-0"] == (32, 32)
    assert shapes["two-0"] == (32, 48)
    assert shapes["three-0"][0] == 32  # cut to what the network takes
    assert "ldm upscale" in fails("sample", "model=runs/whole", "num=2", *FEW)
    assert "likelihood has none of" in fails("likelihood", "model=runs/whole", *FOLDER)


@pytest.mark.slow
def test_two_ranks_are_one(kept):
    options = [*UPSCALE, "schedule.decay=constant", "+optimizer.eps=1e-3"]
    kept("train-diffusion", *options, "run=one")
    ranks("train-diffusion", *options, "batch_size=2", "run=ddp")
    assert_close_weights("runs/one", "runs/ddp", "diffusion", rtol=1e-4, atol=1e-5)
    drawn = ["upscale", "model=runs/one", "images=photos", "shrink=true", "draws=2", "num=3", "batch_size=2"]
    kept(*drawn, "run=alone")
    ranks(*drawn, "run=together")
    assert_same_pictures("runs/alone", "runs/together")
    stamps = [json.loads(Path("runs", run, "upscale.json").read_text())["psnr"] for run in ("alone", "together")]
    assert stamps[0] == stamps[1]


def test_what_does_not_fit_is_said_in_a_line(kept):
    line = fails("train-diffusion", *UPSCALE, "run=x", "condition.factor=4")
    assert "cache them anew with low_resolution=8" in line
    assert "keep no copies" in fails("train-diffusion", *UPSCALE, "run=x", "latents=runs/latents")
    assert "low_resolution=32 must be less than" in fails("cache-latents", "run=y", *FOLDER, "low_resolution=32")
    assert "holds shards of another cache (low_resolution is 16, not 8)" in fails(
        "cache-latents", "run=kept", *FOLDER, "data.flip=true", "low_resolution=8"
    )
    line = fails("upscale", "run=z", "model=runs/diffusion", "images=photos")
    assert "was not trained to upscale (condition=upscale)" in line
