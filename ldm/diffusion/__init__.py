"""Diffusion and flow matching as one method with four choices: path, parameterization, weighting, times.

Read them in this order, then coupling, objective, guidance, noise, samplers, likelihood: each knows only some of those
before it.
Symbols: x0 clean latent, eps noise, t time (0 = data, 1 = noise), x_t = alpha(t) x0 + sigma(t) eps.
"""
