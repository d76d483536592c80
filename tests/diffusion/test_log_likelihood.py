"""Likelihoods against a mixture whose density is known, and the parts of the bound against torch.distributions."""

import math

import pytest
import torch
from support.closed_forms import PATHS, GaussianData, exact_denoiser
from torch.distributions import Independent, Laplace, Normal

from ldm.diffusion.log_likelihood import (
    bits_per_pixel_dim,
    decoder_log_likelihood,
    log_likelihood,
    posterior_entropy,
)
from ldm.diffusion.path import LinearPath, VPPath

FLOWS = {"linear": LinearPath(), "cosine": PATHS["cosine"], "vp": VPPath()}


@pytest.mark.parametrize("steps", [None, 100])
@pytest.mark.parametrize("path", FLOWS)
def test_a_mixtures_density_within_a_thousandth_of_a_bit(path, mixture, steps):
    x0 = mixture.draw(24)
    if steps is not None and path == "vp":
        steps = 400  # sigma rises like sqrt(t) from a tiny t_min, which even steps see coarsely
    found = log_likelihood(
        exact_denoiser(FLOWS[path], mixture), FLOWS[path], x0, divergence="exact", steps=steps, rtol=1e-7, atol=1e-7
    )
    expected = -mixture.log_prob(x0) / (2 * math.log(2))
    assert (found.bits_per_dim(2) - expected).abs().max() < 1e-3
    assert found.standard_error.abs().max() == 0
    assert found.evaluations > 20


def test_hutchinson_is_unbiased_within_its_stated_error(mixture):
    """Where the Jacobian is not diagonal each probe is noisy; the errors, in units of the stated ones, are standard."""
    x0, path = mixture.draw(64), LinearPath()
    found = log_likelihood(exact_denoiser(path, mixture), path, x0, probes=16, steps=30)
    exact = log_likelihood(exact_denoiser(path, mixture), path, x0, divergence="exact", steps=30)
    scores = (found.nats - exact.nats) / found.standard_error.clamp(min=1e-6)
    assert scores.abs().mean() < 2
    assert abs(scores.mean()) < 0.6
    assert found.standard_error.max() > 1e-3


def test_images_have_their_own_dimensions_and_types():
    """[B, C, h, w] in float32, dimensions independent: the sum of what each has."""
    x0 = torch.randn(3, 2, 2, 2) * GaussianData.std + GaussianData.mean
    found = log_likelihood(exact_denoiser(LinearPath(), GaussianData()), LinearPath(), x0, probes=1)
    expected = Normal(GaussianData.mean, GaussianData.std).log_prob(x0).flatten(1).sum(1)
    torch.testing.assert_close(found.nats, expected, rtol=1e-3, atol=1e-2)  # a diagonal Jacobian: signs cancel
    assert found.nats.dtype == torch.float32
    with pytest.raises(ValueError, match="divergence=skilling must be one of exact, hutchinson"):
        log_likelihood(exact_denoiser(LinearPath(), GaussianData()), LinearPath(), x0, divergence="skilling")


def test_pixel_probabilities_sum_to_one():
    x_hat = torch.tensor([-0.97, 0.1, 1.2])[:, None, None, None].expand(3, 1, 1, 1)
    for spread in (0.004, 0.05, 0.5):
        every = [
            decoder_log_likelihood(torch.full((3, 1, 1, 1), v, dtype=torch.uint8), x_hat, spread) for v in range(256)
        ]
        torch.testing.assert_close(torch.stack(every).exp().sum(0), torch.ones(3, dtype=torch.float64))
    image = torch.tensor([[[[200]]]], dtype=torch.uint8)
    found = decoder_log_likelihood(image, torch.tensor([[[[0.5]]]]), 0.1)
    oracle = Laplace(torch.tensor(0.5, dtype=torch.float64), 0.1)
    expected = oracle.cdf(torch.tensor(200.5 / 127.5 - 1)) - oracle.cdf(torch.tensor(199.5 / 127.5 - 1))
    torch.testing.assert_close(found.exp()[0], expected, rtol=1e-5, atol=0)
    far = decoder_log_likelihood(torch.zeros(1, 1, 1, 1, dtype=torch.uint8) + 3, torch.ones(1, 1, 1, 1), 0.004)
    assert far.item() == pytest.approx(-493.982, abs=1e-3)  # log(exp(-a / b) - exp(-c / b)) - log 2, by mpmath
    edge = decoder_log_likelihood(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1, 1), 0.004)
    assert edge.item() == pytest.approx(-499.713, abs=1e-3)


def test_the_bounds_terms_add_up():
    std = torch.rand(2, 4, 3, 3) + 0.1
    oracle = Independent(Normal(torch.zeros_like(std), std), 3).entropy()
    torch.testing.assert_close(posterior_entropy(std), oracle)
    decoder, entropy, latent = torch.tensor([-100.0]), torch.tensor([20.0]), torch.tensor([-30.0])
    bound = bits_per_pixel_dim(decoder, entropy, latent, 10)
    torch.testing.assert_close(bound, torch.tensor([110.0]) / (10 * math.log(2)))
