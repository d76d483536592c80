"""Frechet distance between two sets of images, and how much of it is owed to their small numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ldm.metrics.features import Extractor
from ldm.metrics.statistics import Moments, Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, eq. 6), in float64.

    The root's trace is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: no
    complex numbers, none of an iteration's failures on singular covariances, and twice as fast as those of C_a C_b.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return float(distance)


def expected_bias(covariance: Tensor, count: int) -> float:
    """The distance to be expected between N images and the very distribution that they are drawn from, if its features
    were Gaussian with this covariance, [D, D] with eigenvalues l:

        (1 / N) (5 / 4 tr C + 1 / 2 sum_ij l_i l_j / (l_i + l_j))

    to first order in 1 / N. The mean's error gives tr C; that of the sample covariance, a Wishart matrix, has variances
    l_i l_j (1 + [i = j]) / N and costs |E_ij|^2 / (2 (l_i + l_j)), the distance's second derivative. Sets of samples
    that are compared should have equal numbers: this is why (Chong & Forsyth 2020).
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    pairs = values[:, None] + values
    harmonic = torch.where(pairs > 0, values[:, None] * values / pairs.clamp(min=1e-300), 0.0).sum()
    return float((1.25 * values.sum() + 0.5 * harmonic) / count)


def distance_of_images(features: Extractor, real: Iterable[Tensor], fake: Iterable[Tensor]) -> float:
    """Of batches of uint8 [B, 3, H, W] on each side."""
    sides = []
    for batches in (real, fake):
        moments = Moments(features.num_features)
        for image in batches:
            moments.to(image.device).update(features(image))
        sides.append(moments.statistics())
    return frechet_distance(*sides)
