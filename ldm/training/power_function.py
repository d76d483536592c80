"""Averages of weights by power functions, any of which can be made afterwards of two (Karras et al. 2024, section 3).

The average of width g after t updates weighs the weights after update u by p(u; t, g) = (g + 1) u^g / t^(g + 1), for
u <= t. Its standard deviation over t is sigma_rel. Averages that were kept, as snapshots, span a space, in which the
nearest to another width is found by least squares of these profiles.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDEST = 0.28  # sigma_rel: at g = 0, all weights alike, it is 1 / sqrt(12) = 0.289


def exponent(sigma_rel: float) -> float:
    """g of a width: the root of (g + 1) = sigma_rel^2 (g + 2)^2 (g + 3) (eq. 123 ff. of the paper).

    Raises:
        ValueError: for a width that no power function has.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel={sigma_rel:g} must be more than 0 and at most {WIDEST}")
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def decay(update: int, gamma: float) -> float:
    """What is kept of the average at this update, counted from 1: (1 - 1/t)^(g + 1) (eq. 4)."""
    return (1 - 1 / update) ** (gamma + 1)


def inner(t_a: Floats, gamma_a: Floats, t_b: Floats, gamma_b: Floats) -> Floats:
    """The integral of p(u; t_a, g_a) p(u; t_b, g_b) over u, for arrays that broadcast."""
    shorter = np.minimum(t_a, t_b)
    powers = (shorter / t_a) ** gamma_a * (shorter / t_b) ** gamma_b * shorter / (t_a * t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * powers


def combination(updates: Sequence[int], gammas: Sequence[float], wanted: float, end: int) -> tuple[Floats, float]:
    """The coefficients, one a snapshot, of the combination that is nearest to the average of width `wanted` after `end`
    updates, which sum to 1; and how far that is away: the norm of the profiles' difference as a share of the profile's.

    Args:
        updates: after which each snapshot was taken
        gammas:  of each snapshot's average
        wanted:  g
        end:     at most the largest of updates
    """
    t, g = np.asarray(updates, float), np.asarray(gammas, float)
    gram = inner(t[:, None], g[:, None], t[None], g[None])
    last, width = np.array([float(end)]), np.array([wanted])
    target, whole = inner(t, g, last, width), inner(last, width, last, width)[0]
    solution = np.linalg.lstsq(gram, target, rcond=1e-12)[0]
    coefficients: Floats = np.asarray(solution / solution.sum(), float)
    left = whole - 2 * coefficients @ target + coefficients @ gram @ coefficients
    return coefficients, float(np.sqrt(max(left, 0.0) / whole))
