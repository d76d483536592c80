"""Gaussian data, networks that say what is true of it, and small ones, for the tests of students."""

import torch
from support.closed_forms import GaussianData
from torch import nn

from ldm.condition import Condition
from ldm.diffusion.objective import Objective, expand
from ldm.diffusion.parameterization import target_coefficients
from ldm.diffusion.path import CosinePath, LinearPath
from ldm.diffusion.times import Uniform
from ldm.diffusion.weighting import Unweighted
from ldm.models.unet import UNet

GAUSSIAN = GaussianData()
SHAPE = (7, 2, 3, 3)
ONES = torch.ones(SHAPE[0], dtype=torch.float64)


def objective(path=None, parameterization="velocity", **options):
    defaults = {"weighting": Unweighted(), "time_sampler": Uniform(eps=0.0)}
    return Objective(path=path or LinearPath(), parameterization=parameterization, **(defaults | options))


def normal(seed=0):
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(SHAPE[0])


class Exact(nn.Module):
    """The network that says what is true of Gaussian data; labels move their mean."""

    null_class = 100

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, x_t, t, condition):
        y = Condition.of(condition).label
        c = self.objective.path(expand(t, x_t))
        shift = torch.where(y == self.null_class, 0.0, 0.1 * y).reshape(-1, 1, 1, 1)
        x0 = GAUSSIAN.x0(c, x_t) + shift
        a, b = target_coefficients(c, self.objective.parameterization)
        return a * x0 + b * (x_t - c.alpha * x0) / c.sigma


def small_net(**options):
    torch.manual_seed(0)
    net = UNet(
        in_channels=2, num_classes=3, model_channels=8, channel_mult=[1], num_res_blocks=1, attention_resolutions=[1],
        head_channels=8, **options,
    )  # fmt: skip
    for parameter in net.parameters():
        if not parameter.any() and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return net


def consistency_net(x_t, t, y):
    """F of the exact consistency function: f = cos x_t - sin F is where the Gaussian's flow ends."""
    c = CosinePath()(expand(t, x_t))
    f = GAUSSIAN.flow(CosinePath()(torch.zeros((), dtype=torch.float64)), x_t, c)
    return (c.alpha * x_t - f) / c.sigma
