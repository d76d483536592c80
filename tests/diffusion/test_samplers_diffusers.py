"""Every sampler that diffusers has too, step for step: the states at which the network is asked, and the last one."""

from functools import partial

import diffusers
import pytest
import torch
from support.closed_forms import LDM_BETAS

from ldm.diffusion.objective import Objective, on_path
from ldm.diffusion.path import BetaTablePath, LinearPath, VEPath
from ldm.diffusion.samplers import ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler, heun, unipc
from ldm.diffusion.times import Uniform, leading_grid, trailing_grid
from ldm.diffusion.weighting import Unweighted

BETAS = {
    "beta_start": LDM_BETAS["beta_start"],
    "beta_end": LDM_BETAS["beta_end"],
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}
TABLE, SIGMA_MAX = BetaTablePath(**LDM_BETAS), 20.0


def net(x_t, t, y):
    """What both sides ask."""
    return torch.tanh(x_t) * 0.9 + 0.1 * torch.cos(5 * t.reshape(-1, 1, 1, 1))


def start():
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def diffusers_states(scheduler, x, steps, step_options=dict):
    """Each x at which a diffusers scheduler asks for the noise in it, and its last."""
    scheduler.set_timesteps(steps)
    states = []
    for timestep in scheduler.timesteps:
        states.append(x)
        scaled = scheduler.scale_model_input(x, timestep)
        prediction = net(scaled, torch.full((2,), (float(timestep) + 1) / 1000, dtype=x.dtype), None)
        x = scheduler.step(prediction, timestep, x, **step_options()).prev_sample
    return torch.stack([*states, x])


def our_states(sampler, x, steps, path=TABLE, grid=trailing_grid, **options):
    """The same of a sampler of ours, on the table's path or another."""
    objective = Objective(path=TABLE, parameterization="eps", weighting=Unweighted(), time_sampler=Uniform())
    denoise, states = objective.denoiser(net, torch.zeros(2, dtype=torch.long)), []
    times = grid(TABLE, steps)
    if path is not TABLE:
        ratio = TABLE(times[:-1]).sigma / TABLE(times[:-1]).alpha
        denoise, times = on_path(denoise, TABLE, path), torch.cat([ratio / SIGMA_MAX, times[-1:]])

    def recording(x_t, t):
        states.append(x_t)
        return denoise(x_t, t)

    last = sampler(recording, path, x, times, **options)
    return torch.stack([*states, last])


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs.to(ours), rtol=2e-4, atol=2e-5)  # diffusers' tables are float32


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim(steps, eta):
    x, noises = start(), torch.randn(steps, 2, 3, 4, 4, dtype=torch.float64)
    drawn, theirs = iter(noises), iter(noises)
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    states = diffusers_states(scheduler, x, steps, lambda: {"eta": eta, "variance_noise": next(theirs)} if eta else {})
    assert_same(our_states(ddim, x, steps, eta=eta, noise=lambda _: next(drawn)), states)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_that_ends_at_the_first_timestep_as_ldms(spacing, eta):
    """set_alpha_to_one=False: abar of timestep 0 stands where ours has 1."""
    x, noises = start(), torch.randn(20, 2, 3, 4, 4, dtype=torch.float64)
    drawn, theirs = iter(noises), iter(noises)
    options = BETAS | {"timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False}
    scheduler = diffusers.DDIMScheduler(**options, clip_sample=False)
    states = diffusers_states(scheduler, x, 20, lambda: {"eta": eta, "variance_noise": next(theirs)} if eta else {})
    grid = partial({"leading": leading_grid, "trailing": trailing_grid}[spacing], last="first_timestep")
    assert_same(our_states(ddim, x, 20, grid=grid, eta=eta, noise=lambda _: next(drawn)), states)


@pytest.mark.parametrize("steps", [20, 250])
def test_ddpm(steps, monkeypatch):
    x, noises = start(), torch.randn(steps, 2, 3, 4, 4, dtype=torch.float64)
    drawn, theirs = iter(noises), iter(noises)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(theirs))
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False)
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)  # in float32, errors of many steps add up
    states = diffusers_states(scheduler, x, steps)
    assert_same(our_states(ddpm, x, steps, noise=lambda _: next(drawn)), states)


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize(
    ("sampler", "scheduler"), [(dpmpp_2m, "DPMSolverMultistepScheduler"), (unipc, "UniPCMultistepScheduler")]
)
def test_multistep_solvers(sampler, scheduler, steps):
    options = {"solver_type": "midpoint"} if sampler is dpmpp_2m else {"solver_type": "bh2"}
    oracle = getattr(diffusers, scheduler)(**BETAS, solver_order=2, final_sigmas_type="zero", **options)
    x = start()
    assert_same(our_states(sampler, x, steps), diffusers_states(oracle, x, steps))


@pytest.mark.parametrize("steps", [10, 25])
def test_dpmpp_2m_sde(steps):
    x, noises = start(), torch.randn(steps, 2, 3, 4, 4, dtype=torch.float64)
    drawn, theirs = iter(noises), iter(noises)
    oracle = diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )
    states = diffusers_states(oracle, x, steps, lambda: {"variance_noise": next(theirs)})
    assert_same(our_states(dpmpp_2m_sde, x, steps, noise=lambda _: next(drawn)), states)


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize(("sampler", "scheduler"), [(euler, "EulerDiscreteScheduler"), (heun, "HeunDiscreteScheduler")])
def test_ode_solvers_in_sigma(sampler, scheduler, steps):
    """diffusers walks a VP model on the exploding path: so do we, by re-mapping the denoiser."""
    x, oracle = 13.0 * start(), getattr(diffusers, scheduler)(**BETAS)
    found, theirs = our_states(sampler, x, steps, VEPath(sigma_max=SIGMA_MAX)), diffusers_states(oracle, x, steps)
    if sampler is heun:  # its last step is of order 2, theirs is Euler's
        found, theirs = found[: 2 * steps - 1], theirs[:-1]
    assert_same(found, theirs)


def test_flow_match_euler():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.1, 10).numpy())
    x = y = start()
    objective = Objective(
        path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform()
    )
    denoise = objective.denoiser(net, torch.zeros(2, dtype=torch.long))
    found = euler(denoise, LinearPath(), x, torch.linspace(1, 0, 11, dtype=torch.float64))
    for timestep in scheduler.timesteps:
        y = scheduler.step(net(y, (timestep.double() / 1000).expand(2), None), timestep, y).prev_sample
    assert_same(found, y)
