import numpy as np
import pytest
import scipy.linalg
import torch
from torch.distributions import Normal, kl_divergence

from ldm.latents import DiagonalGaussian, LatentStats, sample_moments


def test_kl_is_that_of_torch_distributions():
    posterior = DiagonalGaussian.from_parameters(torch.randn(3, 8, 5, 4, dtype=torch.float64))
    prior = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    oracle = kl_divergence(Normal(posterior.mean, posterior.std), prior).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl().flatten(1).sum(1), oracle)


def test_log_variance_is_clamped_as_in_ldm():
    posterior = DiagonalGaussian.from_parameters(torch.tensor([0.0, -1e3, 0.0, 1e3]).reshape(2, 2, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]


def test_sampling_from_moments_draws_what_the_posterior_draws():
    posterior = DiagonalGaussian.from_parameters(torch.randn(2, 8, 3, 3))
    torch.manual_seed(1)
    expected = posterior.sample()
    torch.manual_seed(1)
    torch.testing.assert_close(sample_moments(posterior.moments()), expected)


def test_stats_normalize_and_invert():
    z = torch.randn(500, 3, 2, 2, dtype=torch.float64) * torch.tensor([1.0, 4.0, 0.2])[:, None, None] + 3
    stats = LatentStats(z.mean((0, 2, 3)), z.std((0, 2, 3), correction=0))
    latent = stats.normalize(z)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(latent.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(stats.denormalize(latent), z)


def whitened_stats(z):
    """By scipy's matrix functions, of samples z [N, C, h, w]."""
    flat = z.transpose(0, 1).flatten(1).numpy()
    whitening = scipy.linalg.fractional_matrix_power(np.corrcoef(flat), -0.5)
    return LatentStats(z.mean((0, 2, 3)), z.std((0, 2, 3), correction=0), torch.tensor(whitening))


def test_whitening_uncorrelates_the_channels_and_inverts():
    z = torch.einsum("dc,bchw->bdhw", torch.randn(3, 3).double(), torch.randn(500, 3, 2, 2).double()) + 3
    stats = whitened_stats(z)
    latent = stats.normalize(z)
    covariance = torch.cov(latent.transpose(0, 1).flatten(1), correction=0)
    torch.testing.assert_close(covariance, torch.eye(3).double())
    torch.testing.assert_close(stats.denormalize(latent), z)
    single = stats.normalize(z.float())
    assert single.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(stats.normalize(z.float()), single, rtol=0, atol=0)
    again = LatentStats.of(stats.card())
    torch.testing.assert_close(again.denormalize(again.normalize(z.float())), z.float(), rtol=1e-4, atol=1e-4)


def test_the_scale_of_densities_is_the_jacobians():
    z = torch.einsum("dc,bchw->bdhw", torch.randn(3, 3).double(), torch.randn(500, 3, 1, 1).double())
    stats, here = whitened_stats(z), torch.randn(3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: stats.denormalize(x[None, :, None, None]).flatten(), here)
    assert stats.log_scale == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]))
    plain = LatentStats(stats.mean, stats.std)
    assert plain.log_scale == pytest.approx(float(stats.std.log().sum()))
