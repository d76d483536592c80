import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from support.closed_forms import ALL_PATHS, LDM_BETAS

from ldm.diffusion.path import (
    BetaTablePath,
    CosinePath,
    LinearPath,
    Scaled,
    Shifted,
    VEPath,
    VPPath,
    log_snr,
    time_at,
)


def test_derivatives_are_those_of_autograd(any_path, times):
    times.requires_grad_()
    for value, slope in (("alpha", "dalpha"), ("sigma", "dsigma")):
        found = getattr(any_path(times), value)
        if found.requires_grad:
            (derivative,) = torch.autograd.grad(found.sum(), times)
        else:  # a constant
            derivative = torch.zeros_like(times)
        torch.testing.assert_close(getattr(any_path(times), slope).detach(), derivative)


def test_runs_from_data_to_noise_and_never_back(any_path):
    start, end = (any_path(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    assert start.alpha == 1
    assert start.sigma == (0.1 if any_path is ALL_PATHS["linear with sigma_min"] else 0)
    assert end.sigma / end.alpha > 9
    falling = log_snr(any_path(torch.linspace(0, 1, 4001, dtype=torch.float64))).diff()
    assert (falling < 0).all()


def test_keeps_the_shape_and_type_of_t(any_path):
    for coefficient in any_path(torch.rand(2, 3, 1, dtype=torch.float32)):
        assert coefficient.shape == (2, 3, 1)
        assert coefficient.dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "name"), [("linear", None), ("scaled_linear", None), ("cosine", "squaredcos_cap_v2")]
)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_beta_table_is_that_of_diffusers(schedule, name, zero_terminal_snr):
    path = BetaTablePath(**LDM_BETAS | {"schedule": schedule}, zero_terminal_snr=zero_terminal_snr)
    betas = DDPMScheduler(
        1000, LDM_BETAS["beta_start"], LDM_BETAS["beta_end"], beta_schedule=name or schedule
    ).betas.double()
    betas = rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas
    c = path(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(c.alpha**2, torch.cumprod(1 - betas, 0), rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(c.alpha**2 + c.sigma**2, 1)
    assert (c.alpha[-1] == 0) == zero_terminal_snr


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_short_tables_fall_too(schedule, zero_terminal_snr):
    for num_steps in (2, 4, 10, 50):
        path = BetaTablePath(schedule=schedule, num_steps=num_steps, zero_terminal_snr=zero_terminal_snr)
        c = path(torch.linspace(0, 1, 1001, dtype=torch.float64))
        assert c.alpha.isfinite().all() and c.sigma.isfinite().all()
        assert (c.alpha.diff() <= 0).all()
    with pytest.raises(ValueError, match="num_steps=1"):
        BetaTablePath(schedule=schedule, num_steps=1)


def test_vp_path_is_songs(times):
    """alpha = exp(-t^2 (b - a) / 4 - t a / 2), and dx/dt = -beta x / 2 + ... for any x0 and eps."""
    c = VPPath(beta_min=0.1, beta_max=20.0)(times)
    torch.testing.assert_close(c.alpha, torch.exp(-0.25 * times**2 * 19.9 - 0.05 * times))
    torch.testing.assert_close(c.dalpha / c.alpha, -0.5 * (0.1 + 19.9 * times))


def test_sigma_min_is_lipmans(times):
    """psi = (1 - (1 - sigma_min) t) x + t x1 in their time, eq. 22."""
    c, theirs = LinearPath(sigma_min=0.1)(times), 1 - times
    torch.testing.assert_close(c.alpha, theirs)
    torch.testing.assert_close(c.sigma, 1 - 0.9 * theirs)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve"])
def test_shift_moves_the_log_snr_within_the_family(name, times):
    path = ALL_PATHS[name]
    plain, moved = path(times), Shifted(path=path, shift=3.0)(times)
    torch.testing.assert_close(log_snr(moved), log_snr(plain) - 2 * math.log(3))
    family = {"linear": lambda c: c.alpha + c.sigma, "ve": lambda c: c.alpha}
    kept = family.get(name, lambda c: c.alpha**2 + c.sigma**2)(moved)
    torch.testing.assert_close(kept, torch.ones_like(kept))


def test_shift_is_sd3s_and_simple_diffusions(times):
    """SD3: sigma' = s sigma / (1 + (s - 1) sigma), by diffusers; simple diffusion: logsnr + 2 log(64 / resolution)."""
    oracle = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    t = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(Shifted(path=LinearPath(), shift=3.0)(t).sigma.float(), oracle.sigmas[:1000])
    shifted = log_snr(Shifted(path=CosinePath(), shift=256 / 64)(times))
    torch.testing.assert_close(shifted, -2 * torch.log(torch.tan(math.pi * times / 2)) + 2 * math.log(64 / 256))


def test_input_scaling_is_chens_and_a_shift(times):
    """Chen 2023: sqrt(gamma) b x0 + sqrt(1 - gamma) eps, over its standard deviation."""
    gamma, b = CosinePath()(times).alpha ** 2, 0.5
    c = Scaled(path=CosinePath(), scale=b)(times)
    std = ((b**2 - 1) * gamma + 1).sqrt()
    torch.testing.assert_close(c.alpha, gamma.sqrt() * b / std)
    torch.testing.assert_close(c.sigma, (1 - gamma).sqrt() / std)
    for ours, theirs in zip(c, Shifted(path=CosinePath(), shift=1 / b)(times), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_time_at_inverts_the_log_snr(any_path, times):
    torch.testing.assert_close(time_at(any_path, log_snr(any_path(times))), times)
    ends = time_at(any_path, torch.tensor([1e9, -1e9], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: BetaTablePath(**LDM_BETAS | {"schedule": "square"}),
            "schedule=square must be one of linear, scaled_linear, cosine",
        ),
        (lambda: BetaTablePath(**LDM_BETAS | {"beta_start": 0.0}), "beta_start"),
        (lambda: BetaTablePath(**LDM_BETAS | {"beta_end": 1.0}), "beta_end"),
        (lambda: VPPath(beta_min=2.0, beta_max=1.0), "beta_min"),
        (lambda: VEPath(sigma_max=0.0), "sigma_max"),
        (lambda: LinearPath(sigma_min=1.0), "sigma_min"),
        (lambda: Shifted(path=LinearPath(), shift=0.0), "shift"),
        (lambda: Shifted(path=LinearPath(sigma_min=0.1), shift=2.0), r"needs a path with alpha \+ sigma = 1"),
        (lambda: Scaled(path=LinearPath(), scale=-1.0), "scale"),
    ],
)
def test_bad_paths_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_the_last_step_of_a_zero_terminal_table_is_diffusers_first():
    """Its own sampler of such tables starts where alpha is 0."""
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    path = BetaTablePath(schedule="linear", num_steps=1000, zero_terminal_snr=True)
    t = (scheduler.timesteps[0].double() + 1) / 1000
    assert t == 1
    assert path(t).alpha == scheduler.alphas_cumprod[-1].sqrt() == 0
