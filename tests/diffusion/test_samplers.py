"""Samplers on exact denoisers: order, distribution, cost. Against diffusers: test_samplers_diffusers.py."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from support.closed_forms import ALL_PATHS, PATHS, GaussianData, MixtureData, exact_denoiser, sliced_wasserstein
from torchdiffeq import odeint

from ldm.diffusion.objective import Objective, on_path
from ldm.diffusion.parameterization import PARAMETERIZATIONS, Prediction, scale, target_coefficients
from ldm.diffusion.path import CosinePath, LinearPath, VEPath, VPPath, time_at
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

ODE_SOLVERS = [euler, midpoint, heun, rk4]
ORDERS = {euler: 1, ddim: 1, heun: 2, midpoint: 2, dpmpp_2m: 2, unipc: 3, rk4: 4}
STOCHASTIC = [ddpm, dpmpp_2m_sde, euler_maruyama, partial(heun, churn=20.0), partial(ddim, eta=0.5)]
ALL = [*ORDERS, *STOCHASTIC, dopri5]
GAUSSIAN, MIXTURE = GaussianData(), MixtureData()


def name(sampler):
    return sampler.func.__name__ + str(sampler.keywords) if isinstance(sampler, partial) else sampler.__name__


ONE, ZERO = (torch.tensor(t, dtype=torch.float64) for t in (1.0, 0.0))


def noise(path, *shape, t=ONE):
    """x at t, where it is as good as noise."""
    generator = torch.Generator().manual_seed(1)
    return scale(path(t)) * torch.randn(*shape, dtype=torch.float64, generator=generator)


def even_grid(path, n):
    """Even in t on the linear path, in the angle of sigma to alpha on the others: nowhere coarse on any of them."""
    t = uniform_grid(path, n)
    if isinstance(path, LinearPath):
        return t
    ratio = torch.tan(t[1:-1] * torch.atan2(path(ONE).sigma, path(ONE).alpha))
    return torch.cat([t[:1], time_at(path, -2 * ratio.log()), t[-1:]])


@cache
def solution(path, data, start=1.0, end=0.0):
    """12 states, of the mixture in the plane or of the Gaussian, at both times."""
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (start, end))
    x = noise(path, 12, 2, t=start) if data is MIXTURE else noise(path, 12, t=start)
    return x, data.flow(path(end), x, path(start))


def measured_order(sampler, path, data, counts, grid):
    """The slope of log errors at the last time, by log counts of steps."""
    errors = []
    for n in counts:
        times = grid(path, n)
        x, exact = solution(path, data, float(times[0]), float(times[-1]))
        errors.append((sampler(exact_denoiser(path, data), path, x, times) - exact).abs().mean().item())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("sampler", ODE_SOLVERS, ids=name)
@pytest.mark.parametrize(
    ("path", "data"),
    [(path, MIXTURE) for path in ("linear", "cosine", "vp", "beta table", "ve")] + [("vp", GAUSSIAN)],
)
def test_order_of_the_ode_solvers_from_noise_to_data(path, sampler, data):
    """Against the solution at t = 0: by scipy, or of Gaussian data in closed form."""
    order = measured_order(sampler, ALL_PATHS[path], data, (16, 32, 64), even_grid)
    print(f"{name(sampler)}: order {order:.2f}")
    assert ORDERS[sampler] - 0.25 < order < ORDERS[sampler] + 0.5


def between(path, n):
    """From t = 0.9 to 0.1."""
    return torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m, unipc], ids=name)
@pytest.mark.parametrize("path", PATHS)
def test_order_of_the_others_where_they_do_not_land(path, sampler):
    """The last step, which lands on x0, is of order 1."""
    counts = (128, 256, 512) if sampler is unipc else (32, 64, 128)  # a multistep method settles late
    order = measured_order(sampler, PATHS[path], MIXTURE, counts, between)
    print(f"{name(sampler)}: order {order:.2f}")
    assert order > ORDERS[sampler] - 0.25
    assert sampler is not ddim or order < 1.25


@pytest.mark.parametrize(("sampler", "least"), [(heun, 1.4), (midpoint, 1.4), (rk4, 1.9)])
def test_order_of_steps_even_in_t_where_sigma_rises_like_a_root(sampler, least):
    """Next to t = 0 on a path of betas such steps are sqrt(1 / N) in sigma: the last has (p + 1) / 2 of their order."""
    assert measured_order(sampler, VPPath(), MIXTURE, (16, 32, 64), uniform_grid) > least


def test_at_equal_evaluations_the_higher_order_is_the_better_down_to_the_data():
    """About 45 each; torchdiffeq's rk4 (the 3/8 rule) evaluates t = 0, where the slope of the exact flow is -x."""
    path = LinearPath()
    x, exact = solution(path, MIXTURE)

    def slope(t, x):
        x0 = x if t == 0 else MIXTURE.x0(path(t), x)
        return -x if t == 0 else (x - x0) / t

    def error(found):
        return (found - exact).abs().mean().item()

    errors = {
        sampler: error(sampler(exact_denoiser(path, MIXTURE), path, x, uniform_grid(path, n)))
        for sampler, n in ((euler, 45), (heun, 22), (midpoint, 22), (rk4, 11))
    }
    theirs = error(odeint(slope, x, uniform_grid(path, 11), method="rk4")[-1])
    print({name(sampler): f"{e:.1e}" for sampler, e in errors.items()}, f"torchdiffeq's rk4: {theirs:.1e}")
    assert errors[rk4] < 5 * theirs
    assert 10 * errors[rk4] < errors[heun] < 0.2 * errors[euler]
    assert errors[midpoint] < errors[heun]


@pytest.mark.parametrize("sampler", ODE_SOLVERS, ids=name)
def test_a_network_that_regresses_x0_is_not_asked_where_its_error_explodes(sampler, gaussian):
    """An error d of x0 is one of d alpha / sigma in the noise that it implies, the larger the nearer to the data."""
    path, x = LinearPath(), noise(LinearPath(), 12)

    def wrong(x_t, t):
        c, x0 = path(t), exact_denoiser(path, gaussian)(x_t, t).x0 + 0.01
        return Prediction(x0, (x_t - c.alpha * x0) / c.sigma)

    exact = gaussian.flow(path(ZERO), x, path(ONE))
    assert (sampler(wrong, path, x, uniform_grid(path, 40)) - exact).abs().max() < 0.1


def test_ddim_is_euler_on_the_linear_path(gaussian):
    path, x = LinearPath(), torch.randn(16, dtype=torch.float64)
    results = [s(exact_denoiser(path, gaussian), path, x, uniform_grid(path, 10)) for s in (euler, ddim)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("sampler", [*STOCHASTIC, dopri5], ids=name)
def test_moments_are_the_datas(path, gaussian, sampler):
    x, steps = torch.randn(20_000, dtype=torch.float64), 100 if "heun" in name(sampler) else 400  # it is of order 2
    x = sampler(exact_denoiser(path, gaussian), path, x, uniform_grid(path, steps))
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=0.02)
    assert x.std().item() == pytest.approx(gaussian.std, abs=0.02)


@pytest.mark.parametrize(
    ("path", "diffusion", "strength"),
    [
        ("linear", "sigma", 0.5),
        ("linear", "constant", 2.0),
        ("cosine", "bell", 0.5),
        ("cosine", "sigma", 2.0),
        ("beta table", "constant", 0.5),
        ("beta table", "bell", 2.0),
    ],
)
def test_the_sdes_moments_on_the_way(path, gaussian, diffusion, strength):
    """Whatever the diffusion coefficient, the marginal at each time is the path's."""
    path = PATHS[path]
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
        times = grid(path, 50)
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


def evaluations(sampler, gaussian, steps, path=LinearPath()):  # noqa: B008
    calls = []
    denoise = exact_denoiser(path, gaussian)
    sampler(lambda x, t: (calls.append(t), denoise(x, t))[1], path, torch.randn(3), uniform_grid(path, steps))
    assert min(calls) > 0 or path(ZERO).sigma > 0
    return len(calls)


def test_evaluations_are_what_the_docstrings_say(gaussian):
    more = {heun: 14, midpoint: 14, rk4: 27}
    for sampler in (*ORDERS, ddpm, dpmpp_2m_sde, euler_maruyama):
        assert evaluations(sampler, gaussian, 7) == more.get(sampler, 7), name(sampler)
    noisy = LinearPath(sigma_min=0.1)
    for sampler, count in {euler: 8, heun: 15, midpoint: 15, rk4: 29}.items():
        assert evaluations(sampler, gaussian, 7, noisy) == count, name(sampler)


def test_the_adaptive_methods_cost_follows_its_tolerance(gaussian):
    loose, tight = (evaluations(partial(dopri5, rtol=tol, atol=tol), gaussian, 1) for tol in (1e-2, 1e-7))
    assert 7 < loose < tight
