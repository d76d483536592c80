"""Samples that start from pictures: SDEdit."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import fails

import ldm as package
from ldm.commands.sample import origin_of
from ldm.diffusion.parameterization import scale
from ldm.generate.generator import Origin


def picture(name="p.png"):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(name)
    return torch.from_numpy(np.array(Image.open(name))).permute(2, 0, 1)[None]


def test_the_walk_begins_with_the_noised_latent(there):
    model = package.load("runs/diffusion")
    known = torch.randn(2, *model.latent_shape)
    generator = model.generator(steps=4, origin=Origin(latents=known, strength=0.5))
    t, x, _ = generator.latents([0, 1, 2], torch.tensor([1, 2, 3]), keep=3)[1].states[0]
    assert float(t) == pytest.approx(0.5)
    c, end = (model.objective.path(torch.tensor(t, dtype=torch.float64)) for t in (0.5, 1.0))
    # the noise is that of a walk without a picture
    noise = (x - c.alpha * known[[0, 1, 0]]) / c.sigma
    _, plain, _ = model.generator(steps=4).latents([0, 1, 2], torch.tensor([1, 2, 3]), keep=3)[1].states[0]
    torch.testing.assert_close(
        noise.float(), (plain / scale(end)).float(), rtol=1e-4, atol=1e-4
    )  # as without a picture


def test_pictures_are_prepared_as_in_training(there):
    image, model = picture(), package.load("runs/diffusion")
    options = SimpleNamespace(start="p.png", strength=None, interpolation=0, num=1)
    plain = model.encode(image)  # an imported model's card says no more than its resolution
    for card in ({}, {"preprocessing": None}, {"preprocessing": {"resolution": 32}}):
        torch.testing.assert_close(origin_of(options, {"preprocessing": None} | card, model).latents, plain)
    larger = Image.open("p.png").resize((40, 40), Image.Resampling.BICUBIC).crop((4, 4, 36, 36))
    expected = model.encode(torch.from_numpy(np.array(larger)).permute(2, 0, 1)[None])
    made = origin_of(options, {"preprocessing": {"resolution": 32, "resize": 40}}, model).latents
    torch.testing.assert_close(made, expected, rtol=0.05, atol=0.05)
    assert not torch.allclose(made, plain, rtol=0.05, atol=0.05)


def test_as_many_labels_as_samples(there):
    with pytest.raises(ValueError, match="2 samples take a condition of as many rows, or as many labels, not 3"):
        package.load("runs/diffusion").generator(steps=1).images([0, 1], torch.tensor([1, 2, 3]))


def test_little_noise_keeps_the_picture_and_all_of_it_nothing(there):
    image, model = picture(), package.load("runs/diffusion")
    near, far = (model.sample([3], steps=2, start=image, strength=s).float() for s in (0.01, 1.0))
    itself = model.decode(model.encode(image)).float()
    assert (near - itself).abs().mean() < 0.5 * (far - itself).abs().mean()
    torch.testing.assert_close(far, model.sample([3], steps=2).float(), rtol=0, atol=1.0)


def test_the_command(there):
    picture()
    there("sample", "model=runs/diffusion", "num=3", "from=p.png", "strength=0.5", "sampler.steps=2")
    assert json.loads(Path("runs/samples/sample.json").read_text())["start"] == {"from": "p.png", "strength": 0.5}
    given = ["sample", "run=x", "model=runs/diffusion", "from=p.png"]
    assert "strength=0.0 must be" in fails(*given, "strength=0.0")
    assert "pass interpolation=0" in fails(*given, "interpolation=3")
    assert "from=nowhere" in fails(*given[:-1], "from=nowhere")
