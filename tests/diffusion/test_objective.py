import pytest
import torch
from diffusers import DDPMScheduler
from support.closed_forms import LDM_BETAS

from ldm.condition import Condition
from ldm.diffusion.coupling import OptimalTransport
from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import PARAMETERIZATIONS, target_coefficients
from ldm.diffusion.path import BetaTablePath, CosinePath, LinearPath, VEPath
from ldm.diffusion.times import Discrete, LogNormal, Uniform
from ldm.diffusion.weighting import EDM, Unweighted


def net(x_t, t, condition):
    y = Condition.of(condition).label
    return torch.sin(3 * x_t + t.reshape(-1, 1, 1, 1)) + y.reshape(-1, 1, 1, 1)


def data():
    return torch.randn(6, 2, 4, 4), torch.arange(6)


def flow(**options):
    defaults = {"path": LinearPath(), "parameterization": "velocity", "weighting": Unweighted()}
    return Objective(**(defaults | {"time_sampler": Uniform(eps=0.0)} | options))


def test_flow_loss_is_rectified_flows():
    x0, y = data()
    torch.manual_seed(5)
    loss, times = flow().loss(net, x0, y)
    torch.manual_seed(5)
    t, eps = torch.rand(6), torch.randn(6, 2, 4, 4)
    x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * eps
    torch.testing.assert_close(loss, (net(x_t, t, y) - (eps - x0)).square().mean((1, 2, 3)))
    assert torch.equal(times, t)


def test_ddpm_loss_is_that_on_diffusers_noisy_images():
    objective = flow(path=BetaTablePath(**LDM_BETAS), parameterization="eps", time_sampler=Discrete(num_steps=1000))
    oracle = DDPMScheduler(1000, LDM_BETAS["beta_start"], LDM_BETAS["beta_end"], beta_schedule="scaled_linear")
    x0, y = data()
    torch.manual_seed(5)
    loss, _ = objective.loss(net, x0, y)
    torch.manual_seed(5)
    index, eps = torch.randint(1, 1001, (6,)) - 1, torch.randn(6, 2, 4, 4)
    x_t = oracle.add_noise(x0, eps, index)
    expected = (net(x_t, (index + 1) / 1000, y) - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_edm_loss_is_karras():
    """lambda |D(x0 + sigma eps; sigma) - x0|^2 with D = c_skip x + c_out F(c_in x; .), table 1 at sigma_data = 1."""
    objective = flow(
        path=VEPath(sigma_max=80.0), parameterization="v", weighting=EDM(), unit_input=True,
        time_sampler=LogNormal(mean=-0.5, std=1.2),
    )  # fmt: skip
    x0, y = data()
    torch.manual_seed(5)
    loss, _ = objective.loss(net, x0, y)
    torch.manual_seed(5)
    sigma = torch.exp(-0.5 + 1.2 * torch.randn(6))[:, None, None, None]
    x = x0 + sigma * torch.randn(6, 2, 4, 4)
    c_skip, c_out, c_in = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1).sqrt()
    angle = (2 / torch.pi) * torch.atan(sigma.flatten())
    denoised = c_skip * x + c_out * -net(c_in * x, angle, y)
    expected = ((sigma**2 + 1) / sigma**2 * (denoised - x0).square()).mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_loss_takes_noise_that_is_paired_already_and_pairs_its_own():
    x0, y = data()
    eps = torch.randn_like(x0)
    torch.manual_seed(5)
    given, t = flow().loss(net, x0, y, eps=eps)
    t_ = t[:, None, None, None]
    torch.testing.assert_close(given, (net((1 - t_) * x0 + t_ * eps, t, y) - (eps - x0)).square().mean((1, 2, 3)))
    seen = []
    straight = flow(coupling=OptimalTransport())
    straight.loss(lambda x_t, t, y: seen.append((x_t, t)) or torch.zeros_like(x_t), x0, 0 * y)
    x_t, t = seen[0]
    eps = (x_t - (1 - t[:, None, None, None]) * x0) / t[:, None, None, None]
    again = OptimalTransport()(x0, eps, 0 * y)
    torch.testing.assert_close(again, eps)  # the best pairs stay as they are


@pytest.mark.parametrize("unit_input", [False, True])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_denoiser_inverts_what_the_loss_trains(any_path, parameterization, unit_input):
    """A network that knows the exact target gets loss 0, and its denoiser returns the exact x0."""
    if parameterization == "eps" and any_path(torch.tensor(1.0, dtype=torch.float64)).alpha < 1e-6:
        with pytest.raises(ValueError, match="use v, velocity or x0"):
            flow(path=any_path, parameterization="eps")
        return
    objective = flow(path=any_path, parameterization=parameterization, unit_input=unit_input, time_sampler=Uniform())
    x0, y = torch.full((3, 1, 2, 2), 0.3, dtype=torch.float64), torch.zeros(3, dtype=torch.long)

    def exact(x_t, t, y):
        t = t.double().reshape(-1, 1, 1, 1)
        if unit_input:  # t is the angle, and tells sigma / alpha
            ratio = torch.tan(0.5 * torch.pi * t)
            from ldm.diffusion.path import time_at

            t = time_at(any_path, -2 * ratio.log())
            c = any_path(t)
            x_t = x_t * (c.alpha**2 + c.sigma**2).sqrt()
        c = any_path(t)
        a, b = target_coefficients(c, parameterization)
        return a * x0 + b * (x_t - c.alpha * x0) / c.sigma

    assert objective.loss(exact, x0, y)[0].max() < 1e-6
    t = torch.tensor(0.4, dtype=torch.float64)
    prediction = objective.denoiser(exact, y)(torch.randn_like(x0), t)
    torch.testing.assert_close(prediction.x0, x0)


def test_unknown_parameterizations_are_refused():
    with pytest.raises(ValueError, match="must be one of x0, eps, v, velocity"):
        flow(parameterization="noise")


def test_errors_at_one_scale_are_the_plain_ones_and_at_more_those_of_means():
    torch.manual_seed(0)
    x0, eps, t, y = torch.randn(4, 3, 8, 4), torch.randn(4, 3, 8, 4), torch.rand(4), torch.zeros(4).long()

    def loss(scales, where=None):
        learned = Objective(
            path=CosinePath(), parameterization="v", weighting=Unweighted(), time_sampler=Uniform(), scales=scales
        )
        return learned.loss(lambda x_t, t, y: 0.3 * x_t, x0, y, t=t, eps=eps, where=where)[0]

    c = CosinePath()(t.view(-1, 1, 1, 1))
    error = 0.3 * (c.alpha * x0 + c.sigma * eps) - (c.alpha * eps - c.sigma * x0)
    torch.testing.assert_close(loss(1), error.square().flatten(1).mean(1))
    halves = error.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    quarters = error.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    expected = sum(k * part.square().flatten(1).mean(1) for k, part in ((1, error), (2, halves), (4, quarters)))
    torch.testing.assert_close(loss(3), expected)
    torch.testing.assert_close(loss(3, torch.ones(4, 1, 8, 4)), expected)
    with pytest.raises(ValueError, match="halves latents of 8 x 4 too often: at most 3 scales"):
        loss(4)
