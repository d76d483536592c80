"""Published weights, in the target that each paper states them for."""

import numpy as np
import pytest
import torch
from support.closed_forms import LDM_BETAS, PATHS

from ldm.diffusion.parameterization import PARAMETERIZATIONS, determinant, target_coefficients
from ldm.diffusion.path import BetaTablePath, VEPath
from ldm.diffusion.weighting import EDM, P2, LearnedUncertainty, MinSNR, Sigmoid, SoftMinSNR, Unweighted


def weight(rule, path, parameterization, times):
    c = path(times)
    gain = (c.sigma / determinant(c, *target_coefficients(c, parameterization))) ** 2
    return rule(torch.ones_like(times), (c.alpha / c.sigma) ** 2, gain)


@pytest.fixture
def snr(times):
    c = BetaTablePath(**LDM_BETAS)(times)
    return (c.alpha / c.sigma) ** 2


@pytest.mark.parametrize(
    ("rule", "parameterization", "published"),
    [
        (MinSNR(gamma=5.0), "x0", lambda snr: snr.clamp(max=5)),
        (MinSNR(gamma=5.0), "eps", lambda snr: (5 / snr).clamp(max=1)),
        (MinSNR(gamma=5.0), "v", lambda snr: snr.clamp(max=5) / (snr + 1)),
        (SoftMinSNR(gamma=4.0), "x0", lambda snr: 1 / (1 / snr + 1 / 4)),
        (P2(k=1.0, gamma=0.5), "eps", lambda snr: 1 / (1 + snr) ** 0.5),
        (Sigmoid(bias=-1.0), "eps", lambda snr: torch.sigmoid(-1 - snr.log())),
        (Unweighted(), "v", torch.ones_like),
    ],
)
def test_published_weights(rule, parameterization, published, snr, times):
    torch.testing.assert_close(weight(rule, BetaTablePath(**LDM_BETAS), parameterization, times), published(snr))


def test_edms_weight(times):
    """lambda(sigma) = (sigma^2 + 1) / sigma^2 on the denoiser's error; on the network's, v's, it is 1."""
    path = VEPath(sigma_max=80.0)
    sigma = path(times).sigma
    torch.testing.assert_close(weight(EDM(), path, "x0", times), (sigma**2 + 1) / sigma**2)
    torch.testing.assert_close(weight(EDM(), path, "v", times), torch.ones_like(sigma))


@pytest.mark.parametrize("rule", [MinSNR(), SoftMinSNR(), P2(), Sigmoid(), EDM()])
@pytest.mark.parametrize("path", PATHS)
def test_a_rule_means_the_same_for_every_parameterization(rule, path, times):
    """One error of x0, as each network would make it, costs the same."""
    c = PATHS[path](times)
    losses = []
    for parameterization in PARAMETERIZATIONS:
        det = determinant(c, *target_coefficients(c, parameterization))
        error = (det / c.sigma) ** 2 * 0.3  # an x0 error of 0.3, in the target's units
        losses.append(rule(error, (c.alpha / c.sigma) ** 2, (c.sigma / det) ** 2))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


@pytest.fixture
def learned():
    return LearnedUncertainty(base=Unweighted())


def test_learned_uncertainty_is_edm2s(learned):
    """Karras et al. 2024: normalised weights, Fourier features of log(sigma) / 4, written out in numpy."""
    sigma = np.logspace(-3, 3, 7)
    f, phase, w = (x.detach().double().numpy() for x in (learned.frequencies, learned.phases, learned.out.weight[0]))
    u = [(np.sqrt(2) * np.cos(f * np.log(s) / 4 + phase)) @ (w / np.sqrt((w**2).sum())) for s in sigma]
    error, snr = torch.ones(7), torch.from_numpy(1 / sigma**2).float()
    expected = torch.from_numpy(np.exp(-np.array(u)) + u).float()
    torch.testing.assert_close(learned(error, snr, snr), expected, rtol=1e-4, atol=1e-4)


def test_learned_uncertainty_preserves_magnitude_and_only_its_direction_counts(learned):
    snr = torch.logspace(-6, 6, 50)
    with torch.no_grad():
        mean_square = 0.0
        for _ in range(300):
            learned.out.weight.normal_()
            mean_square += learned.uncertainty(snr).square().mean().item() / 300
        before = learned.uncertainty(snr)
        learned.out.weight *= 7
    assert mean_square == pytest.approx(1, abs=0.15)
    torch.testing.assert_close(learned.eval().uncertainty(snr), before)
    assert learned.out.weight.norm().item() == pytest.approx(7 * 128**0.5, rel=1e-5)  # only training normalises it
    learned.train().uncertainty(snr).sum().backward()
    assert learned.out.weight.norm().item() == pytest.approx(128**0.5, rel=1e-5)
    weight, gradient = learned.out.weight[0].detach(), learned.out.weight.grad[0]
    assert (weight @ gradient).abs().item() < 1e-3 * (weight.norm() * gradient.norm()).item()


def test_learned_uncertainty_finds_the_log_of_each_levels_loss(learned):
    """The minimum of loss / exp(u) + u is u = log(loss)."""
    snr = torch.logspace(-2, 2, 64)
    error = 0.1 + 0.9 * torch.sigmoid(snr.log())
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        learned(error, snr, snr).mean().backward()
        optimizer.step()
    torch.testing.assert_close(learned(error, snr, snr), 1 + error.log(), atol=0.05, rtol=0)
    assert learned(error[:1], torch.zeros(1), torch.zeros(1)).isfinite()  # alpha = 0
