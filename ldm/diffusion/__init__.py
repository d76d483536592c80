"""Diffusion and flow matching as one method with four choices: path, parameterization, weighting, times.

Read the files in that order, then coupling, objective, guidance, noise, ode, samplers, sampling, log_likelihood,
repaint, and of students student, progressive, derivative, meanflow, consistency: each imports only files before it.
Symbols: x0 clean latent, eps noise, t time (0 = data, 1 = noise), x_t = alpha(t) x0 + sigma(t) eps.
"""
