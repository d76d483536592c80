"""Samplers on exact denoisers: order, distribution, cost. Against diffusers: test_samplers_diffusers.py."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from support.closed_forms import PATHS, MixtureData, exact_denoiser, sliced_wasserstein

from ldm.diffusion.objective import Objective, on_path
from ldm.diffusion.parameterization import PARAMETERIZATIONS, scale, target_coefficients
from ldm.diffusion.path import CosinePath, LinearPath, VEPath, VPPath
from ldm.diffusion.samplers import (
    ddim,
    ddpm,
    dopri5,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_maruyama,
    heun,
    midpoint,
    rk4,
    unipc,
)
from ldm.diffusion.times import Uniform, karras_grid, log_snr_grid, uniform_grid
from ldm.diffusion.weighting import Unweighted

ORDERS = {euler: 1, ddim: 1, heun: 2, midpoint: 2, dpmpp_2m: 2, unipc: 3, rk4: 4}
STOCHASTIC = [ddpm, dpmpp_2m_sde, euler_maruyama, partial(heun, churn=20.0), partial(ddim, eta=0.5)]
ALL = [*ORDERS, *STOCHASTIC, dopri5]


def name(sampler):
    return sampler.func.__name__ + str(sampler.keywords) if isinstance(sampler, partial) else sampler.__name__


def measured_order(sampler, path, data, exact, x):
    """From errors at t = 0.1, walked from t = 0.9, between which every path is smooth."""
    # a multistep method settles late; a table's spline has no fourth derivative, which fine steps of rk4 would notice
    coarse = (16, 32, 64) if sampler is rk4 and path is PATHS["beta table"] else (32, 64, 128)
    counts, errors = (128, 256, 512) if sampler is unipc else coarse, []
    for n in counts:
        grid = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        errors.append((sampler(exact_denoiser(path, data), path, x, grid) - exact).abs().mean().item())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("sampler", ORDERS, ids=name)
@pytest.mark.parametrize("path", ["linear", "cosine", "beta table"])
def test_convergence_order_on_a_mixture(path, mixture, sampler):
    """Against the ODE's solution by an adaptive method of order 8 (scipy's DOP853) in float64."""
    path = PATHS[path]
    x, solution = mixture_solution(path)
    order = measured_order(sampler, path, mixture, solution, x)
    print(f"{name(sampler)}: order {order:.2f}")
    assert order > ORDERS[sampler] - 0.25
    assert sampler in (rk4, unipc, dpmpp_2m) or order < ORDERS[sampler] + 0.25  # h^2 of 2M is small here


@cache
def mixture_solution(path):
    from scipy.integrate import solve_ivp

    from ldm.diffusion.parameterization import velocity

    torch.manual_seed(1)
    x, denoise = torch.randn(12, 2, dtype=torch.float64), exact_denoiser(path, MixtureData())

    def slope(t, flat):
        t = torch.tensor(t, dtype=torch.float64)
        return velocity(path(t), denoise(torch.from_numpy(flat).reshape(12, 2), t)).flatten().numpy()

    solved = solve_ivp(slope, (0.9, 0.1), x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
    return x, torch.from_numpy(solved.y[:, -1]).reshape(12, 2)


def test_ddim_is_euler_on_the_linear_path(gaussian):
    path, x = LinearPath(), torch.randn(16, dtype=torch.float64)
    results = [s(exact_denoiser(path, gaussian), path, x, uniform_grid(path, 10)) for s in (euler, ddim)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("sampler", ALL, ids=name)
def test_moments_are_the_datas(path, gaussian, sampler):
    x = torch.randn(20_000, dtype=torch.float64)
    x = sampler(exact_denoiser(path, gaussian), path, x, uniform_grid(path, 500))
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=0.02)
    assert x.std().item() == pytest.approx(gaussian.std, abs=0.02)


@pytest.mark.parametrize("diffusion", ["sigma", "constant", "bell"])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_the_sdes_moments_on_the_way(path, gaussian, diffusion, strength):
    """Whatever the diffusion coefficient, the marginal at each time is the path's."""
    x, end = torch.randn(40_000, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    grid = torch.linspace(1.0, 0.4, 301, dtype=torch.float64)
    options = {"diffusion": diffusion, "strength": strength}
    x, c = euler_maruyama(exact_denoiser(path, gaussian), path, x, grid, **options), path(end)
    assert x.mean().item() == pytest.approx((c.alpha * gaussian.mean).item(), abs=0.02)
    expected = ((c.alpha * gaussian.std) ** 2 + c.sigma**2).sqrt().item()
    assert x.std().item() == pytest.approx(expected, rel=0.02)


def test_an_sde_without_diffusion_is_euler(gaussian):
    path, x = CosinePath(), torch.randn(16, dtype=torch.float64)
    grid, denoise = uniform_grid(path, 10), exact_denoiser(path, gaussian)
    torch.testing.assert_close(euler_maruyama(denoise, path, x, grid, strength=0.0), euler(denoise, path, x, grid))
    with pytest.raises(ValueError, match="must be one of sigma, constant, bell"):
        euler_maruyama(denoise, path, x, grid, diffusion="x")


@pytest.mark.parametrize("sampler", ALL, ids=name)
@pytest.mark.parametrize("steps", [1, 10, 25])
@pytest.mark.parametrize("path", [*PATHS.values(), LinearPath(sigma_min=0.1)])
def test_no_noise_is_left_in_the_sample_of_a_point(path, gaussian, sampler, steps):
    gaussian.std = 0.0
    x = torch.randn(100, dtype=torch.float64)
    x = sampler(exact_denoiser(path, gaussian), path, x, uniform_grid(path, steps))
    torch.testing.assert_close(x, torch.full_like(x, gaussian.mean), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [uniform_grid, karras_grid, log_snr_grid])
@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp_2m, unipc, dpmpp_2m_sde], ids=name)
def test_cross_path_sampling_gives_the_same_distribution(mixture, sampler, grid):
    """A denoiser of the VP path, walked on it, on the linear and on the exploding one."""
    trained, reference = VPPath(), mixture.draw(4000)
    for path in (trained, LinearPath(), VEPath(sigma_max=80.0)):
        times = grid(path, 100)
        start = torch.randn(4000, 2, dtype=torch.float64) * scale(path(times[0]))
        denoise = on_path(exact_denoiser(trained, mixture), trained, path)
        if path.__class__ is VEPath and grid is uniform_grid:
            continue  # even steps of 0.8 in sigma see nothing of the data
        assert sliced_wasserstein(sampler(denoise, path, start, times), reference) < 0.06


def test_a_remapped_denoiser_is_the_other_paths_own(mixture):
    x, t = torch.randn(8, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    remapped = on_path(exact_denoiser(VPPath(), mixture), VPPath(), LinearPath())(x, t)
    for ours, own in zip(remapped, exact_denoiser(LinearPath(), mixture)(x, t), strict=True):
        torch.testing.assert_close(ours, own)


def test_every_parameterization_samples_the_same(mixture):
    path, x, results = VPPath(), torch.randn(16, 2, dtype=torch.float64), []
    for parameterization in PARAMETERIZATIONS:
        objective = Objective(
            path=path, parameterization=parameterization, weighting=Unweighted(), time_sampler=Uniform()
        )

        def network(x_t, t, y, parameterization=parameterization):
            c = path(t[0])
            a, b = target_coefficients(c, parameterization)
            x0 = mixture.x0(c, x_t)
            return a * x0 + b * (x_t - c.alpha * x0) / c.sigma

        denoise = objective.denoiser(network, torch.zeros(16, dtype=torch.long))
        results.append(heun(denoise, path, x, uniform_grid(path, 12)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_churn_is_algorithm_2(gaussian):
    """Karras et al. 2022, algorithm 2, written out in sigma on their path."""
    path = VEPath(sigma_max=10.0)
    times, draws = karras_grid(path, 8), torch.randn(8, 16, dtype=torch.float64)
    start = 10 * torch.randn(16, dtype=torch.float64)
    ours, theirs = iter(draws), iter(draws)
    options = {"churn": 4.0, "churn_range": (0.05, 5.0), "churn_noise": 1.003, "noise": lambda _: next(ours)}
    found = heun(exact_denoiser(path, gaussian), path, start, times, **options)

    def d(x, sigma):
        shrunk = 0.4**2 / (0.4**2 + sigma**2)
        return (x - (0.7 + shrunk * (x - 0.7))) / sigma

    x, sigmas = start, (10 * times).tolist()
    for i in range(8):
        gamma = min(4 / 8, 2**0.5 - 1) if 0.05 <= sigmas[i] <= 5.0 else 0
        hat = sigmas[i] * (1 + gamma)
        if gamma:
            x = x + (hat**2 - sigmas[i] ** 2) ** 0.5 * 1.003 * next(theirs)
        slope = d(x, hat)
        ahead = x + (sigmas[i + 1] - hat) * slope
        if sigmas[i + 1] > 0:
            ahead = x + (sigmas[i + 1] - hat) * 0.5 * (slope + d(ahead, sigmas[i + 1]))
        x = ahead
    torch.testing.assert_close(found, x)


def evaluations(sampler, gaussian, steps):
    calls, path = [], LinearPath()
    denoise = exact_denoiser(path, gaussian)
    sampler(lambda x, t: (calls.append(t), denoise(x, t))[1], path, torch.randn(3), uniform_grid(path, steps))
    assert min(calls) > 0
    return len(calls)


def test_evaluations_are_what_the_docstrings_say(gaussian):
    twice = {heun: 13, midpoint: 13, rk4: 25}
    for sampler in (*ORDERS, ddpm, dpmpp_2m_sde, euler_maruyama):
        assert evaluations(sampler, gaussian, 7) == twice.get(sampler, 7), name(sampler)


def test_the_adaptive_methods_cost_follows_its_tolerance(gaussian):
    loose, tight = (evaluations(partial(dopri5, rtol=tol, atol=tol), gaussian, 1) for tol in (1e-2, 1e-7))
    assert 7 < loose < tight
