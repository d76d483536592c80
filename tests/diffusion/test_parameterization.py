import math

import pytest
import torch

from ldm.diffusion.parameterization import PARAMETERIZATIONS, solve, target_coefficients, velocity
from ldm.diffusion.path import CosinePath, VEPath


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_solve_returns_both_ends(any_path, times, parameterization):
    x0, eps = torch.randn(2, len(times), dtype=torch.float64)
    c = any_path(times)
    a, b = target_coefficients(c, parameterization)
    found = solve(c, a, b, c.alpha * x0 + c.sigma * eps, a * x0 + b * eps)
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.eps, eps)


def test_velocity_is_the_time_derivative(any_path, times):
    x0, eps = torch.randn(2, len(times), dtype=torch.float64)
    times.requires_grad_()
    x_t = any_path(times).alpha * x0 + any_path(times).sigma * eps
    (derivative,) = torch.autograd.grad(x_t.sum(), times)
    times = times.detach()
    c = any_path(times)
    a, b = target_coefficients(c, "velocity")
    torch.testing.assert_close(a * x0 + b * eps, derivative)
    torch.testing.assert_close(velocity(c, solve(c, a, b, x_t.detach(), derivative)), derivative)


def test_velocity_is_half_pi_v_on_the_cosine_path(times):
    c = CosinePath()(times)
    for v, u in zip(target_coefficients(c, "v"), target_coefficients(c, "velocity"), strict=True):
        torch.testing.assert_close(0.5 * math.pi * v, u)


def test_v_has_unit_variance_on_every_path(any_path, times):
    a, b = target_coefficients(any_path(times), "v")
    torch.testing.assert_close(a**2 + b**2, torch.ones_like(a))


def test_edms_network_is_minus_v(times):
    """Karras et al. 2022, table 1, with sigma_data = 1: D = c_skip x + c_out F(c_in x), written out as they do."""
    path, x, output = VEPath(sigma_max=80.0), torch.randn(49, dtype=torch.float64), torch.randn(49, dtype=torch.float64)
    c = path(times)
    sigma, sigma_data = c.sigma, 1.0
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    found = solve(c, *target_coefficients(c, "v"), x, -output)
    torch.testing.assert_close(found.x0, c_skip * x + c_out * output)
