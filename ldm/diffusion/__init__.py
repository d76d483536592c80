"""Diffusion and flow matching as one method with four choices; torch only.

Read path, parameterization, weighting, times, objective, guidance, samplers, in this order.
Symbols: x0 clean latent, eps noise, t time (0 = data, 1 = noise), x_t = alpha(t) x0 + sigma(t) eps.
"""
