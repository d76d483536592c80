"""Frechet distance between two sets of images, by torchmetrics (float64 moments, trace of the root by eigenvalues)."""

import warnings
from collections.abc import Iterable

from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


def frechet_distance(features: nn.Module, real: Iterable[Tensor], fake: Iterable[Tensor]) -> tuple[float, int, int]:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017), and the number of images on each side.

    real and fake are batches of uint8 [B, 3, H, W]; features maps them to [B, D] and has `num_features`.
    """
    metric = FrechetInceptionDistance(feature=features)
    for image in real:
        metric.update(image, real=True)
    for image in fake:
        metric.update(image, real=False)
    counts = int(metric.real_features_num_samples), int(metric.fake_features_num_samples)
    return compute_frechet(metric), *counts


def compute_frechet(metric: FrechetInceptionDistance) -> float:
    """The metric's value, or a ValueError for fewer than two images a side."""
    counts = int(metric.real_features_num_samples), int(metric.fake_features_num_samples)
    if min(counts) < 2:
        raise ValueError(f"a Frechet distance needs two images a side, not {counts[0]} and {counts[1]}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Casting complex values to real.*")
        return float(metric.compute())
