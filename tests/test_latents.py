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
