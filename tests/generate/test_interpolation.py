"""Between two samples: the ends are the samples themselves, and the noise stays as long as noise is."""

import pytest
import torch

from ldm.diffusion.samplers import ddpm
from ldm.generate.interpolation import interpolate, slerp
from ldm.generate.loading import load_model


@pytest.fixture(scope="module")
def model(pipeline):
    return load_model(pipeline / "runs/diffusion", device="cpu", weights="raw", autoencoder=None, trust=())


def sample(generator, label):
    return generator.images([0], torch.tensor([label]))[0]


@pytest.mark.parametrize("sampler", ["euler", ddpm], ids=["euler", "ddpm"])
def test_its_ends_are_the_samples_of_both_seeds(model, sampler):
    first, last = (model.generator(sampler=sampler, steps=3, guidance=1.5, seed=seed) for seed in (3, 8))
    two = model.told(torch.tensor([2]))
    images = interpolate(first, (3, 8), (two, two), 4)
    assert images.shape[0] == 4
    assert (images[:1].int() - sample(first, 2).int()).abs().max() <= 1
    if sampler == "euler":  # a stochastic one adds the first seed's noise all the way
        assert (images[-1:].int() - sample(last, 2).int()).abs().max() <= 1


def test_its_ends_are_the_samples_of_both_classes(model):
    generator = model.generator(sampler="euler", steps=3, guidance=2.0, seed=5)
    one, seven = (model.told(torch.tensor([label])) for label in (1, 7))
    images = interpolate(generator, (5, 5), (one, seven), 3)
    assert (images[:1].int() - sample(generator, 1).int()).abs().max() <= 1
    assert (images[-1:].int() - sample(generator, 7).int()).abs().max() <= 1
    assert not torch.equal(images[0], images[-1])


def test_slerp_turns_by_equal_angles_and_keeps_the_length():
    first, last = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    on_the_way = slerp(first.view(1, 2, 1, 1), last.view(1, 2, 1, 1), torch.linspace(0, 1, 4).view(-1, 1, 1, 1))
    angles = torch.atan2(on_the_way[:, 1, 0, 0], on_the_way[:, 0, 0, 0])
    assert torch.allclose(angles, torch.linspace(0, torch.pi / 2, 4), atol=1e-6)
    assert torch.allclose(on_the_way.flatten(1).norm(dim=1), torch.ones(4))
    same = slerp(first.view(1, 2, 1, 1), first.view(1, 2, 1, 1), torch.tensor([0.3]).view(-1, 1, 1, 1))
    assert torch.equal(same, first.view(1, 2, 1, 1))
