import numpy as np
import pytest
import torch
from closed_forms import LDM_BETAS
from diffusers import DDPMScheduler

from ldm.diffusion.path import BetaTablePath


def test_derivatives_are_those_of_autograd(path, times):
    times.requires_grad_()
    for value, slope in (("alpha", "dalpha"), ("sigma", "dsigma")):
        (derivative,) = torch.autograd.grad(getattr(path(times), value).sum(), times)
        torch.testing.assert_close(getattr(path(times), slope).detach(), derivative)


def test_runs_from_data_to_noise(path):
    start, end = (path(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    assert (start.alpha, start.sigma) == (1, 0)
    assert end.alpha < 0.1
    assert end.sigma > 0.99


def test_keeps_the_shape_and_type_of_t(path):
    for coefficient in path(torch.rand(2, 3, 1, dtype=torch.float32)):
        assert coefficient.shape == (2, 3, 1)
        assert coefficient.dtype == torch.float32


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_beta_table_is_that_of_diffusers(schedule):
    path = BetaTablePath(**LDM_BETAS | {"schedule": schedule})
    oracle = DDPMScheduler(1000, LDM_BETAS["beta_start"], LDM_BETAS["beta_end"], beta_schedule=schedule)
    c = path(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(c.alpha**2, oracle.alphas_cumprod.double(), rtol=1e-5)
    np.testing.assert_allclose(c.alpha**2 + c.sigma**2, 1)


@pytest.mark.parametrize("wrong", [{"schedule": "cosine"}, {"beta_start": 0.0}, {"beta_end": 1.0}])
def test_bad_beta_table_is_refused(wrong):
    with pytest.raises(ValueError, match=r"schedule|beta"):
        BetaTablePath(**LDM_BETAS | wrong)
