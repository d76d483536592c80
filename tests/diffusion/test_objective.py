import pytest
import torch
from closed_forms import LDM_BETAS
from diffusers import DDPMScheduler

from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import PARAMETERIZATIONS
from ldm.diffusion.path import BetaTablePath, LinearPath
from ldm.diffusion.times import Discrete, LogitNormal, Uniform
from ldm.diffusion.weighting import MinSNR, Unweighted


def net(x_t, t, y):
    return torch.sin(3 * x_t + t.reshape(-1, 1, 1, 1)) + y.reshape(-1, 1, 1, 1)


def data():
    return torch.randn(6, 2, 4, 4), torch.arange(6)


def test_flow_loss_is_rectified_flows():
    objective = Objective(
        path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform(eps=0.0)
    )
    x0, y = data()
    torch.manual_seed(5)
    loss = objective.loss(net, x0, y)
    torch.manual_seed(5)
    t, eps = torch.rand(6), torch.randn(6, 2, 4, 4)
    x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * eps
    torch.testing.assert_close(loss, (net(x_t, t, y) - (eps - x0)).square().mean((1, 2, 3)))


def test_ddpm_loss_is_that_on_diffusers_noisy_images():
    objective = Objective(
        path=BetaTablePath(**LDM_BETAS),
        parameterization="eps",
        weighting=Unweighted(),
        time_sampler=Discrete(num_steps=1000),
    )
    oracle = DDPMScheduler(1000, LDM_BETAS["beta_start"], LDM_BETAS["beta_end"], beta_schedule="scaled_linear")
    x0, y = data()
    torch.manual_seed(5)
    loss = objective.loss(net, x0, y)
    torch.manual_seed(5)
    index, eps = torch.randint(1, 1001, (6,)) - 1, torch.randn(6, 2, 4, 4)
    x_t = oracle.add_noise(x0, eps, index)
    expected = (net(x_t, (index + 1) / 1000, y) - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_denoiser_inverts_what_the_loss_trains(path, gaussian, parameterization):
    """A network that knows the exact target gets loss 0, and its denoiser returns the exact x0."""
    objective = (
        Objective(path=path, parameterization=parameterization, weighting=Unweighted(), time_sampler=Uniform())
        if parameterization != "eps" or path(torch.tensor(1.0)).alpha > 1e-3
        else None
    )
    if objective is None:
        pytest.skip("eps on a path that ends at alpha = 0 is refused: see the next test")
    x0, y = torch.full((3, 1, 2, 2), 0.3, dtype=torch.float64), torch.zeros(3, dtype=torch.long)

    def exact(x_t, t, y):
        from ldm.diffusion.parameterization import target_coefficients

        c = path(t.double().reshape(-1, 1, 1, 1))
        a, b = target_coefficients(c, parameterization)
        return a * x0 + b * (x_t - c.alpha * x0) / c.sigma

    assert objective.loss(exact, x0, y).max() < 1e-8
    prediction = objective.denoiser(exact, y)(torch.randn_like(x0), torch.tensor(0.4, dtype=torch.float64))
    torch.testing.assert_close(prediction.x0, x0)


def test_eps_where_the_path_ends_in_pure_noise_is_refused():
    with pytest.raises(ValueError, match="use v, velocity or x0"):
        Objective(path=LinearPath(), parameterization="eps", weighting=Unweighted(), time_sampler=Uniform())
    with pytest.raises(ValueError, match="must be one of x0, eps, v, velocity"):
        Objective(path=LinearPath(), parameterization="noise", weighting=Unweighted(), time_sampler=Uniform())


def test_min_snr_is_the_published_weight(times):
    """Hang et al. 2023: min(snr, 5) / snr for eps, / (snr + 1) for v, on variance-preserving paths."""
    c = BetaTablePath(**LDM_BETAS)(times)
    snr = (c.alpha / c.sigma) ** 2
    clipped = torch.minimum(snr, torch.tensor(5.0, dtype=torch.float64))
    for determinant, published in ((c.alpha, clipped / snr), (torch.ones_like(snr), clipped / (snr + 1))):
        torch.testing.assert_close(MinSNR(gamma=5.0)(snr, (c.sigma / determinant) ** 2), published)


def test_times_follow_their_distributions():
    n, device = 20000, torch.device("cpu")
    logits = torch.logit(LogitNormal(mean=0.5, std=2.0)(n, device))
    assert abs(logits.mean() - 0.5) < 0.06
    assert abs(logits.std() - 2.0) < 0.06
    assert Uniform(eps=0.1)(n, device).min() >= 0.1
    assert sorted(set(Discrete(num_steps=4)(n, device).tolist())) == [0.25, 0.5, 0.75, 1.0]
