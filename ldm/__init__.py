"""ldm: train latent diffusion and flow-matching models; read `ldm/diffusion` first."""

__version__ = "0.1.0"
