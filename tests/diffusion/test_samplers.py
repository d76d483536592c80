import math

import numpy as np
import pytest
import torch
from closed_forms import LDM_BETAS
from diffusers import DDIMScheduler, DDPMScheduler

from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import Prediction
from ldm.diffusion.path import BetaTablePath, LinearPath
from ldm.diffusion.samplers import ddim, ddpm, euler, heun
from ldm.diffusion.times import Uniform, uniform_grid
from ldm.diffusion.weighting import Unweighted


def exact_denoiser(path, gaussian):
    def denoise(x_t, t):
        c = path(t)
        x0 = gaussian.x0(c, x_t)
        return Prediction(x0, (x_t - c.alpha * x0) / c.sigma)

    return denoise


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (ddim, 1), (heun, 2)])
def test_convergence_order(path, gaussian, sampler, order):
    """Errors against the ODE's closed-form solution, walked from t = 0.9 to 0.1, where every path is smooth."""
    x1, errors, counts = torch.linspace(-2, 2, 9, dtype=torch.float64), [], (25, 50, 100)
    ends = [path(torch.tensor(t, dtype=torch.float64)) for t in (0.9, 0.1)]
    for n in counts:
        grid = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        found = sampler(exact_denoiser(path, gaussian), path, x1, grid)
        errors.append((found - gaussian.flow(ends[1], x1, ends[0])).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


def test_ddim_is_euler_on_the_linear_path(gaussian):
    path, x = LinearPath(), torch.randn(16, dtype=torch.float64)
    results = [s(exact_denoiser(path, gaussian), path, x, uniform_grid(10)) for s in (euler, ddim)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("sampler", [euler, heun, ddim, ddpm])
def test_samples_are_the_datas(path, gaussian, sampler):
    x = sampler(exact_denoiser(path, gaussian), path, torch.randn(50_000, dtype=torch.float64), uniform_grid(500))
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=0.02)
    assert x.std().item() == pytest.approx(gaussian.std, abs=0.02)


@pytest.mark.parametrize("sampler", [euler, heun, ddim, ddpm])
@pytest.mark.parametrize("steps", [1, 10, 25])
def test_no_noise_is_left_in_the_sample_of_a_point(path, gaussian, sampler, steps):
    gaussian.std = 0.0
    x = sampler(exact_denoiser(path, gaussian), path, torch.randn(100, dtype=torch.float64), uniform_grid(steps))
    torch.testing.assert_close(x, torch.full_like(x, gaussian.mean))


def eps_net(x_t, t, y):
    return torch.tanh(x_t) * 0.9 + 0.1 * torch.cos(5 * t.reshape(-1, 1, 1, 1))


def ldm_denoiser():
    objective = Objective(
        path=BetaTablePath(**LDM_BETAS), parameterization="eps", weighting=Unweighted(), time_sampler=Uniform()
    )
    return objective.denoiser(eps_net, torch.zeros(2, dtype=torch.long)), objective.path


def diffusers_walk(scheduler, x, noises):
    """Each x that a diffusers scheduler makes from the same predictions and the same noise."""
    states = []
    for index in scheduler.timesteps:
        prediction = eps_net(x, torch.full((2,), (index.item() + 1) / 1000, dtype=x.dtype), None)
        x = scheduler.step(prediction, int(index), x, **noises()).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_step_for_step_as_diffusers(steps, eta):
    betas = {"beta_start": LDM_BETAS["beta_start"], "beta_end": LDM_BETAS["beta_end"]}
    scheduler = DDIMScheduler(
        1000, **betas, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(steps)
    denoise, path = ldm_denoiser()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    noises = [torch.randn_like(x) for _ in range(steps)]
    ours, theirs, drawn = [], iter(noises), iter(noises)
    states = diffusers_walk(scheduler, x, lambda: {"eta": eta, "variance_noise": next(theirs)} if eta else {})
    y = x
    for t, s in zip(uniform_grid(steps)[:-1], uniform_grid(steps)[1:], strict=True):
        y = ddim(denoise, path, y, torch.stack([t, s]), eta=eta, noise=lambda _: next(drawn))
        ours.append(y)
    # diffusers keeps its betas in float32
    torch.testing.assert_close(torch.stack(ours), torch.stack(states), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm_step_for_step_as_diffusers(steps, monkeypatch):
    betas = {"beta_start": LDM_BETAS["beta_start"], "beta_end": LDM_BETAS["beta_end"]}
    scheduler = DDPMScheduler(
        1000, **betas, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(steps)
    denoise, path = ldm_denoiser()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    noises = [torch.randn_like(x) for _ in range(steps)]
    theirs, drawn = iter(noises), iter(noises)
    target = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(target, lambda *_, **__: next(theirs))
    states = diffusers_walk(scheduler, x, dict)
    ours, y = [], x
    for t, s in zip(uniform_grid(steps)[:-1], uniform_grid(steps)[1:], strict=True):
        y = ddpm(denoise, path, y, torch.stack([t, s]), noise=lambda _: next(drawn))
        ours.append(y)
    torch.testing.assert_close(torch.stack(ours), torch.stack(states), rtol=1e-4, atol=1e-5)


def test_evaluations_are_what_the_docstrings_say(gaussian):
    path = LinearPath()
    for sampler, expected in ((euler, 7), (heun, 13), (ddim, 7), (ddpm, 7)):
        calls, denoise = [], exact_denoiser(path, gaussian)
        sampler(lambda x, t, c=calls, d=denoise: (c.append(t), d(x, t))[1], path, torch.randn(3), uniform_grid(7))
        assert len(calls) == expected
        assert min(calls) > 0


def test_grid_needs_a_step():
    with pytest.raises(ValueError, match=r"sampler\.steps"):
        uniform_grid(0)
    assert math.isclose(uniform_grid(4)[1], 0.75)
