"""heun with churn: Karras et al.'s algorithm 2, never beyond the noise that the walk starts with."""

import pytest
import torch
from support.closed_forms import ALL_PATHS, exact_denoiser

from ldm.diffusion.path import VEPath
from ldm.diffusion.samplers import heun
from ldm.diffusion.times import karras_grid, uniform_grid


def test_churn_is_algorithm_2(gaussian):
    """Karras et al. 2022, algorithm 2, written out in sigma on their path; but for the slope of the last step."""
    path = VEPath(sigma_max=10.0)
    times, draws = karras_grid(path, 8), torch.randn(8, 16, dtype=torch.float64)
    start = 10 * torch.randn(16, dtype=torch.float64)
    ours, theirs = iter(draws), iter(draws)
    options = {"churn": 4.0, "churn_range": (0.001, 5.0), "churn_noise": 1.003, "noise": lambda _: next(ours)}
    found = heun(exact_denoiser(path, gaussian), path, start, times, **options)

    def d(x, sigma):
        shrunk = 0.4**2 / (0.4**2 + sigma**2)
        return (x - (0.7 + shrunk * (x - 0.7))) / sigma

    x, sigmas = start, (10 * times).tolist()
    for i in range(8):
        gamma = min(4 / 8, 2**0.5 - 1) if 0.001 <= sigmas[i] <= 5.0 else 0
        hat = sigmas[i] * (1 + gamma)
        if gamma:
            x = x + (hat**2 - sigmas[i] ** 2) ** 0.5 * 1.003 * next(theirs)
        slope = d(x, hat)
        if sigmas[i + 1] > 0:
            ahead = x + (sigmas[i + 1] - hat) * slope
            x = x + (sigmas[i + 1] - hat) * 0.5 * (slope + d(ahead, sigmas[i + 1]))
        else:  # half-way in sigma / (1 + sigma), as the linear path's t is
            u = hat / (1 + hat)
            middle = (u / 2) / (1 - u / 2)
            z = x / (1 + hat) - u / 2 * (d(x, hat) - (x - hat * d(x, hat)))
            x_middle = z * (1 + middle)
            eps = d(x_middle, middle)
            x = x / (1 + hat) - u * (eps - (x_middle - middle * eps))
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("path", ["beta table", "ve"])
def test_churn_never_goes_beyond_the_noise_that_the_walk_starts_with(path, gaussian):
    """There the path may end, and where it goes on the network has not been."""
    path, asked, times = ALL_PATHS[path], [], uniform_grid(ALL_PATHS[path], 10, 0.3)

    def recording(x_t, t):
        asked.append(float(t))
        return exact_denoiser(path, gaussian)(x_t, t)

    c = path(times[0])
    x = c.alpha * gaussian.mean + ((c.alpha * gaussian.std) ** 2 + c.sigma**2).sqrt() * torch.randn(20_000).double()
    x = heun(recording, path, x, times, churn=10.0, churn_range=(0.0, 1e9))
    assert max(asked) == pytest.approx(0.3, abs=1e-12)
    assert (torch.tensor(asked[2::2]) > times[1:-1] + 1e-6).all()  # later steps start from higher than the last ended
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=0.02)
    assert x.std().item() == pytest.approx(gaussian.std, abs=0.02)
