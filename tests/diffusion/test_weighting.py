"""Published weights, in the target that each paper states them for."""

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


def test_learned_uncertainty_finds_the_log_of_each_levels_loss():
    """The minimum of loss / exp(u) + u is u = log(loss)."""
    rule = LearnedUncertainty(base=Unweighted())
    snr = torch.logspace(-2, 2, 64)
    error = 0.1 + 0.9 * torch.sigmoid(snr.log())
    torch.testing.assert_close(rule(error, snr, snr), error)  # u starts at 0
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
    for _ in range(1000):
        optimizer.zero_grad()
        rule(error, snr, snr).mean().backward()
        optimizer.step()
    torch.testing.assert_close(rule(error, snr, snr), 1 + error.log(), atol=0.05, rtol=0)
    assert rule(error[:1], torch.zeros(1), torch.zeros(1)).isfinite()  # alpha = 0
