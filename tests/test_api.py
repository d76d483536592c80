"""ldm.load: a trained model in three lines, equal to what the commands do."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.tiny import inside

import ldm as package
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.samplers import euler
from ldm.diffusion.times import karras_grid, uniform_grid
from ldm.generate.autoencoding import AutoencoderModel
from ldm.generate.model import LatentDiffusionModel


@pytest.fixture(scope="module")
def model(pipeline):
    return package.load(pipeline / "runs/diffusion", device="cpu")


def test_importing_ldm_is_light():
    code = "import ldm, sys; assert callable(ldm.load); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "hydra", "lightning", "pydantic"}


def test_the_lines_of_the_readme(model):
    images = model.sample(["3", 5], n=8, sampler="heun", steps=2, guidance=2.0, seed=0)
    assert (images.shape, images.dtype) == ((8, 3, 32, 32), torch.uint8)
    z = model.encode(images)
    assert z.shape == (8, 4, 8, 8)
    images_hat = model.decode(z)
    assert (images_hat.shape, images_hat.dtype) == ((8, 3, 32, 32), torch.uint8)


def test_it_draws_what_ldm_sample_draws(model, ldm, pipeline):
    inside(pipeline, ldm)
    ldm("sample", "run=api", "num=6", "classes=[3,5]", "sampler=heun", "sampler.steps=2", "guidance=2.0", "seed=7")
    images = model.sample([3, "5"], n=6, sampler="heun", steps=2, guidance=2.0, seed=7)
    written = torch.from_numpy(np.load("runs/api/samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    assert (images.int() - written.int()).abs().max() <= 1


def test_functions_do_as_well_as_names(model):
    named = model.sample(n=2, sampler="euler", steps=3, grid="karras", path="linear", guidance=1.5)
    passed = model.sample(n=2, sampler=euler, steps=3, grid=karras_grid, path="linear", guidance=Guidance(scale=1.5))
    assert torch.equal(named, passed)
    assert not torch.equal(named, model.sample(n=2, sampler=euler, steps=3, grid=uniform_grid, guidance=1.5))


def test_a_sample_does_not_depend_on_the_batch_size(model):
    one, other = (model.sample(n=5, steps=2, batch_size=size) for size in (2, 5))
    assert (one.int() - other.int()).abs().max() <= 1


def test_all_classes_in_turn_are_the_default(model):
    assert model.labels() == list(range(10))
    assert len(model.sample(steps=1)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat"]}, r"classes=\['cat'\] must be null, or name some of 0 ... 9 or of their names: 0, 1"),
        ({"classes": 10}, "classes=10 must be null"),
        ({"classes": []}, "must be null"),
        ({"sampler": "huen"}, "sampler=huen must be one of ddim, ddpm, dopri5"),
        ({"grid": "cosines"}, "grid=cosines must be one of cosine, karras, leading"),
        ({"path": "straight"}, "path=straight must be one of cosine, linear, ve, vp, or a path itself"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"guidance": -1.0}, "guidance"),
    ],
)
def test_mistakes(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.sample(**options)


def test_an_autoencoder_alone(pipeline, model):
    alone = package.load(pipeline / "runs/autoencoder", device="cpu")
    assert isinstance(alone, AutoencoderModel)
    images = model.sample(n=2, steps=1)
    z = alone.encode(images)
    assert torch.allclose(model.stats.normalize(z), model.encode(images))
    assert (alone.decode(z).int() - model.decode(model.encode(images)).int()).abs().max() <= 1  # rounding


def test_stages_are_checked_against_each_other(pipeline, tmp_path, ldm):
    from support.tiny import CPU, TINY_AUTOENCODER

    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "seed=1", "steps=2")
    with pytest.raises(ValueError, match="was made with the autoencoder"):
        package.load(pipeline / "runs/diffusion", autoencoder="runs/autoencoder")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        package.load(tmp_path / "nowhere")
    assert isinstance(package.load(pipeline / "runs/diffusion", device="cpu"), LatentDiffusionModel)


@pytest.mark.parametrize(("sampler", "evaluations"), [("heun", 8), ("euler", 4), ("dpmpp_2m", 4)])
def test_a_trajectory_is_at_the_grid_s_times(model, sampler, evaluations):
    generator = model.generator(sampler=sampler, steps=4, grid="uniform")
    states, times = generator.trajectory(torch.tensor([3]))
    assert times == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert len(states) == 2 * len(times)
    images, counted = generator.images([0], torch.tensor([3]))
    assert counted == evaluations
    assert torch.equal(states[4], states[9])  # the end is the sample, and its own prediction
    assert (states[4].int() - images[0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"n": 1.5}, "n=1.5 must be a whole number"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"guidance": -1.0}, "guidance=-1.0 must be a finite number of at least 0"),
        ({"classes": True}, "classes=True must be null, or name some of 0 ... 9"),
        ({"classes": [10]}, r"classes=\[10\] must be null, or name some of 0 ... 9"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(model, arguments, said):
    with pytest.raises(ValueError, match=said):
        model.sample(**arguments)


def test_classes_may_be_arrays(model):
    assert model.labels(np.array([5, 3])) == model.labels(torch.tensor([5, 3])) == model.labels(["5", 3]) == [5, 3]
    assert model.labels(np.int64(5)) == [5]


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8)])
def test_what_are_no_images_is_not_encoded(model, pipeline, images):
    for one in (model, package.load(pipeline / "runs/autoencoder", device="cpu")):
        with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\]"):
            one.encode(images)


def test_a_model_is_one_line_in_a_notebook(model, pipeline):
    assert repr(model) == "LatentDiffusionModel(10 classes, latents of 4 x 8 x 8, on cpu)"
    assert repr(package.load(pipeline / "runs/autoencoder", device="cpu")) == "AutoencoderModel(images / 4, on cpu)"


def test_an_autoencoder_takes_no_options_of_diffusion_models(pipeline):
    with pytest.raises(ValueError, match="weights= are for diffusion models"):
        package.load(pipeline / "runs/autoencoder", device="cpu", weights="raw")
