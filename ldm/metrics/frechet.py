"""The Frechet distance between two sets of images, and how much of it comes from their small numbers."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ldm.metrics.features import Extractor
from ldm.metrics.statistics import Moments, Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, eq. 6), in float64.

    The root's trace is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2). As that is symmetric, they
    are real, no iteration can fail on a singular covariance, and they take half the time of those of C_a C_b.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return float(distance)


def expected_bias(covariance: Tensor, count: int) -> float:
    """The distance to be expected between `count` images and the very distribution that they are drawn from, if its
    features were Gaussian with this covariance C, [D, D]: the mean of tr C / N and of drawn sample covariances W.

    It is why only distances of equally many samples may be compared (Chong & Forsyth 2020).

    With the eigenvalues l of C on a diagonal, and N - 1 rows of independent normal numbers G / sqrt(N - 1), W is
    l^(1/2) G'G l^(1/2), and the root's trace in the distance is the sum of the singular values of G l. Where there are
    more rows than D, their triangular factor is drawn instead (Bartlett 1933).
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    freedom, size, rng = count - 1, len(values), np.random.default_rng(0)
    rounds, total = max(1, 1024 // size), 0.0
    for _ in range(rounds):
        normal = rng.standard_normal((min(freedom, size), size))
        if freedom >= size:
            normal = np.triu(normal, 1) + np.diag(np.sqrt(rng.chisquare(freedom - np.arange(size))))
        g = torch.from_numpy(normal) / freedom**0.5
        product = g * values
        small = product @ product.T if len(g) < size else product.T @ product
        overlap = torch.linalg.eigvalsh(small).clamp(min=0).sqrt().sum()
        total += float((g.square() * values).sum() + values.sum() - 2 * overlap)
    return float(values.sum()) / count + total / rounds


def distance_of_images(features: Extractor, real: Iterable[Tensor], fake: Iterable[Tensor]) -> float:
    """The Frechet distance between two streams of batches, uint8 [B, 3, H, W]."""
    sides = []
    for batches in (real, fake):
        moments = Moments(features.num_features)
        for image in batches:
            moments.to(image.device).update(features(image))
        sides.append(moments.statistics())
    return frechet_distance(*sides)
