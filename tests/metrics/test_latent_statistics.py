import numpy as np
import scipy.stats
import torch
from torch.distributions import Normal, kl_divergence

from ldm.metrics.latent_statistics import LatentStatistics


def test_statistics_are_those_of_many_samples():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(50, 2, 8, 8, generator=generator) ** 3 + torch.tensor([0.0, 2.0])[:, None, None]
    std = torch.rand(50, 2, 8, 8, generator=generator) + 0.5
    metric = LatentStatistics(2)
    for part in torch.cat([mean, std], dim=1).split(20):
        metric.update(part)
    found = metric.compute()
    z = (mean + std * torch.randn(400, 50, 2, 8, 8, generator=generator)).double()
    z = z.permute(2, 0, 1, 3, 4).flatten(1).numpy()
    np.testing.assert_allclose(found["mean"], z.mean(1), atol=0.01)
    np.testing.assert_allclose(found["std"], z.std(1), rtol=0.005)
    np.testing.assert_allclose(found["kurtosis"], scipy.stats.kurtosis(z, axis=1), rtol=0.02)
    oracle = kl_divergence(Normal(mean.double(), std.double()), Normal(0.0, 1.0)).sum((0, 2, 3)) / 50
    torch.testing.assert_close(found["kl"], oracle)
