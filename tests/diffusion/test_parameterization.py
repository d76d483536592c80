import math

import pytest
import torch

from ldm.diffusion.parameterization import PARAMETERIZATIONS, solve, target_coefficients, velocity
from ldm.diffusion.path import CosinePath


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_solve_returns_both_ends(path, times, parameterization):
    x0, eps = torch.randn(2, len(times), dtype=torch.float64)
    c = path(times)
    a, b = target_coefficients(c, parameterization)
    found = solve(c, a, b, c.alpha * x0 + c.sigma * eps, a * x0 + b * eps)
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.eps, eps)


def test_velocity_is_the_time_derivative(path, times):
    x0, eps = torch.randn(2, len(times), dtype=torch.float64)

    times.requires_grad_()
    x_t = path(times).alpha * x0 + path(times).sigma * eps
    (derivative,) = torch.autograd.grad(x_t.sum(), times)
    times = times.detach()
    c = path(times)
    a, b = target_coefficients(c, "velocity")
    torch.testing.assert_close(a * x0 + b * eps, derivative)
    torch.testing.assert_close(velocity(c, solve(c, a, b, x_t.detach(), derivative)), derivative)


def test_velocity_is_half_pi_v_on_the_cosine_path(times):
    c = CosinePath()(times)
    for v, u in zip(target_coefficients(c, "v"), target_coefficients(c, "velocity"), strict=True):
        torch.testing.assert_close(0.5 * math.pi * v, u)
