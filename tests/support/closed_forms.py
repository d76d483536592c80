"""Paths and data whose every quantity is known in closed form."""

import math
from typing import Any

import torch
from scipy.integrate import solve_ivp

from ldm.diffusion.parameterization import Prediction
from ldm.diffusion.path import BetaTablePath, Coefficients, CosinePath, LinearPath, Scaled, Shifted, VEPath, VPPath

LDM_BETAS: dict[str, Any] = {"schedule": "scaled_linear", "num_steps": 1000, "beta_start": 0.0015, "beta_end": 0.0195}
PATHS = {"linear": LinearPath(), "cosine": CosinePath(), "beta table": BetaTablePath(**LDM_BETAS)}
ALL_PATHS = PATHS | {
    "vp": VPPath(),
    "linear with sigma_min": LinearPath(sigma_min=0.1),
    "cosine table": BetaTablePath(schedule="cosine", num_steps=100),
    "zero terminal snr": BetaTablePath(**LDM_BETAS, zero_terminal_snr=True),
    "ve": VEPath(sigma_max=20.0),
    "shifted linear": Shifted(path=LinearPath(), shift=3.0),
    "shifted cosine": Shifted(path=CosinePath(), shift=2.0),
    "scaled cosine": Scaled(path=CosinePath(), scale=0.5),
    "normalised ve": Scaled(path=VEPath(sigma_max=20.0), scale=1.0),
}


class GaussianData:
    """x0 ~ N(mean, std^2): everything about its paths in closed form."""

    mean, std = 0.7, 0.4

    def x0(self, c, x_t):
        """E[x0 | x_t]."""
        variance = (c.alpha * self.std) ** 2 + c.sigma**2
        return self.mean + c.alpha * self.std**2 / variance * (x_t - c.alpha * self.mean)

    def flow(self, c, x1, c1):
        """The probability-flow ODE's solution: it keeps the standardised value, from x1 at c1 to c."""
        spread, spread1 = (((k.alpha * self.std) ** 2 + k.sigma**2).sqrt() for k in (c, c1))
        return c.alpha * self.mean + (x1 - c1.alpha * self.mean) * spread / spread1


class MixtureData:
    """x0 [B, D] ~ a mixture of isotropic Gaussians in the plane; zero mean and about unit variance, as latents have."""

    means = torch.tensor([[0.9, 0.0], [-0.9, 1.3], [-0.9, -1.3]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    std = 0.3

    def components(self, c):
        mixing = torch.distributions.Categorical(self.weights)
        spread = ((c.alpha * self.std) ** 2 + c.sigma**2).sqrt().expand(3, 2)
        parts = torch.distributions.Independent(torch.distributions.Normal(c.alpha * self.means, spread), 1)
        return torch.distributions.MixtureSameFamily(mixing, parts)

    def log_prob(self, x0):
        zero = torch.zeros((), dtype=torch.float64)
        return self.components(LinearPath()(zero)).log_prob(x0)

    def x0(self, c, x_t):
        """E[x0 | x_t]: each component's, weighted by its posterior probability."""
        variance = (c.alpha * self.std) ** 2 + c.sigma**2
        away = x_t[:, None] - c.alpha * self.means  # [B, 3, 2]
        logits = self.weights.log() - away.square().sum(-1) / (2 * variance)
        each = self.means + c.alpha * self.std**2 / variance * away
        return (logits.softmax(1)[..., None] * each).sum(1)

    def draw(self, n):
        which = torch.multinomial(self.weights, n, replacement=True)
        return self.means[which] + self.std * torch.randn(n, 2, dtype=torch.float64)

    def flow(self, c, x1, c1):
        """The probability-flow ODE's solution, x1 at c1 to x at c, by an adaptive method of order 8 (scipy's DOP853).

        In z = x / (alpha + sigma) and u = sigma / (alpha + sigma) it is dz/du = eps - x0 on every path.
        """

        def slope(u, z):
            there = Coefficients(*(torch.tensor(value, dtype=torch.float64) for value in (1 - u, u, -1.0, 1.0)))
            z = torch.from_numpy(z).reshape(x1.shape)
            x0 = self.x0(there, z)
            return ((z - (1 - u) * x0) / u - x0).flatten().numpy()

        sizes = [float(k.alpha + k.sigma) for k in (c1, c)]
        span = [max(float(k.sigma) / size, 1e-9) for k, size in zip((c1, c), sizes, strict=True)]
        start = (x1 / sizes[0]).flatten().numpy()
        solved = solve_ivp(slope, span, start, method="DOP853", rtol=1e-11, atol=1e-12)
        return sizes[1] * torch.from_numpy(solved.y[:, -1]).reshape(x1.shape)


def exact_denoiser(path, data):
    """What a perfect network would say."""

    def denoise(x_t, t):
        c = path(t)
        x0 = data.x0(c, x_t)
        return Prediction(x0, (x_t - c.alpha * x0) / c.sigma)

    return denoise


def sliced_wasserstein(x, y, directions=32):
    """Mean W1 distance of the projections of two sets [N, 2] of one size."""
    angles = torch.arange(directions, dtype=torch.float64) * (math.pi / directions)
    axes = torch.stack([angles.cos(), angles.sin()])
    return ((x @ axes).sort(0).values - (y @ axes).sort(0).values).abs().mean().item()
