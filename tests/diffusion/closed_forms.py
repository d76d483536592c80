"""Paths and data whose every quantity is known in closed form."""

from ldm.diffusion.path import BetaTablePath, CosinePath, LinearPath

LDM_BETAS = {"schedule": "scaled_linear", "num_steps": 1000, "beta_start": 0.0015, "beta_end": 0.0195}
PATHS = {"linear": LinearPath(), "cosine": CosinePath(), "beta table": BetaTablePath(**LDM_BETAS)}


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
