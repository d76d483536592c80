import math

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from ldm.diffusion import times as grids
from ldm.diffusion.path import BetaTablePath, LinearPath, VEPath, log_snr
from ldm.diffusion.times import Discrete, LogitNormal, LogNormal, Mode, Stratified, Uniform

CPU = torch.device("cpu")


def draw(sampler, n=20000, path=None):
    return sampler(n, path or LinearPath(), CPU)


def fits(sample, cdf):
    """Kolmogorov-Smirnov."""
    return scipy.stats.kstest(sample.numpy(), cdf).pvalue > 1e-3


def test_times_follow_their_distributions():
    assert fits(torch.logit(draw(LogitNormal(mean=0.5, std=2.0)).double()), scipy.stats.norm(0.5, 2).cdf)
    assert fits(draw(Uniform(eps=0.1)), scipy.stats.uniform(0.1, 0.9).cdf)
    assert sorted(set(draw(Discrete(num_steps=4)).tolist())) == [0.25, 0.5, 0.75, 1.0]
    path = VEPath(sigma_max=80.0)
    t = draw(LogNormal(mean=-0.5, std=1.2), path=path)
    assert fits(path(t.double()).sigma.log(), scipy.stats.norm(-0.5, 1.2).cdf)


def test_stratified_has_one_in_each_stratum():
    t = draw(Stratified(eps=0.0), 64)
    assert sorted((64 * t).floor().tolist()) == list(range(64))
    assert fits(torch.cat([draw(Stratified(eps=0.2), 50) for _ in range(200)]), scipy.stats.uniform(0.2, 0.8).cdf)


@pytest.mark.parametrize("scale", [-0.5, 0.8, 1.29])
def test_mode_is_the_papers_density(scale):
    """t(u) is decreasing: its distribution function is 1 - u(t), here by numerical inversion."""
    u = np.linspace(0, 1, 10001)
    t = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    assert fits(draw(Mode(scale=scale)), lambda x: np.interp(x, t[::-1], 1 - u[::-1]))
    with pytest.raises(ValueError, match=r"scale=2.0 must lie in \[-1, 1"):
        Mode(scale=2.0)


GRIDS = [getattr(grids, f"{name}_grid") for name in ("uniform", "shifted", "log_snr", "karras", "trailing", "leading")]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_grids_fall_from_noise_to_data(grid, steps, any_path):
    times = grid(any_path, steps)
    assert times.shape == ((steps if grid is not grids.leading_grid or steps != 7 else 8) + 1,)
    assert times.dtype == torch.float64
    assert 0 < times[0] <= 1 and times[-1] == 0
    assert (times.diff() < 0).all()
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        grid(any_path, 0)


@pytest.mark.parametrize(
    ("spacing", "steps"), [*(("trailing", n) for n in (7, 10, 50, 999)), *(("leading", n) for n in (8, 10, 50, 250))]
)
def test_discrete_spacings_are_diffusers(spacing, steps):
    scheduler = DDIMScheduler(1000, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    grid = {"trailing": grids.trailing_grid, "leading": grids.leading_grid}[spacing]
    times = grid(LinearPath(), steps)
    np.testing.assert_allclose(times[:-1], (scheduler.timesteps.double().clamp(max=999) + 1) / 1000)
    with pytest.raises(ValueError, match="num_steps=1000"):
        grid(LinearPath(), 1001)
    with pytest.raises(ValueError, match="can be sampled: pass grid=uniform"):
        grids.trailing_grid(LinearPath(), steps, 0.5)


@pytest.mark.parametrize(
    ("steps", "visited"),
    [
        (7, [995, 853, 711, 569, 427, 285, 143, 1]),
        (6, [997, 831, 665, 499, 333, 167, 1]),
        (300, range(997, 0, -3)),  # CompVis' own list ends in timestep 1000, and fails
        (600, range(999, 0, -1)),
        (1000, range(999, 0, -1)),
    ],
)
def test_leading_spacing_is_ldms_where_the_steps_do_not_divide_the_table(steps, visited):
    """range(0, 1000, 1000 // steps) + 1, as CompVis has it; those beyond the table left out."""
    times = grids.leading_grid(LinearPath(), steps)
    np.testing.assert_allclose(times, (torch.tensor([*visited, -1]) + 1) / 1000)


@pytest.mark.parametrize("grid", [grids.trailing_grid, grids.leading_grid])
def test_discrete_grids_end_at_the_data_or_at_the_first_timestep(grid):
    data, first = (grid(LinearPath(), 20, last=last) for last in ("x0", "first_timestep"))
    assert torch.equal(data[:-1], first[:-1])
    assert (data[-1], first[-1]) == (0, 1 / 1000)
    with pytest.raises(ValueError, match="last=data must be one of x0, first_timestep"):
        grid(LinearPath(), 20, last="data")
    with pytest.raises(ValueError, match="pass last=x0"):
        grid(LinearPath(), 20, num_steps=20, last="first_timestep", **({"offset": 0} if "leading" in str(grid) else {}))
    with pytest.raises(ValueError, match="offset=1000 must be less"):
        grids.leading_grid(LinearPath(), 20, offset=1000)


def test_karras_spacing_is_diffusers():
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(18)
    path = VEPath(sigma_max=80.0)
    torch.testing.assert_close(path(grids.karras_grid(path, 18)).sigma.float(), scheduler.sigmas, rtol=1e-4, atol=1e-6)


def test_shifted_spacing_is_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    torch.testing.assert_close(grids.shifted_grid(LinearPath(), 10).float(), scheduler.sigmas)


def test_log_snr_spacing_is_even_and_starts_where_the_path_does():
    path = BetaTablePath(schedule="linear", num_steps=1000)
    there = log_snr(path(grids.log_snr_grid(path, 20, low=-99.0, high=8.0)[:-1]))
    torch.testing.assert_close(there.diff(), there.diff()[0].expand(18 + 1))
    assert math.isclose(there[0], log_snr(path(torch.ones((), dtype=torch.float64))), rel_tol=1e-6)
    assert math.isclose(there[-1], 8.0, rel_tol=1e-6)
