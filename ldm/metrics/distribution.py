"""Scores beyond the Frechet distance: of neighbourhoods, kernels and entropies, from features or logits [N, D]."""

import math
from collections.abc import Iterator
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

CHUNK = 1000  # rows of a matrix of distances at a time
ADMS_SPLIT = 5000  # images


def distances(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances, in float64: (start, [at most CHUNK, len(b)]) for a's rows from `start` on."""
    b = b.double()
    for start in range(0, len(a), CHUNK):
        yield start, torch.cdist(a[start : start + CHUNK].double(), b)


def neighbourhoods(real: Tensor, fake: Tensor, precision_recall: int, density_coverage: int) -> dict[str, float]:
    """precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), [N, D] and [M, D].

    Each image has a ball that reaches to its k-th nearest neighbour in its own set.

    precision   share of fakes in any real ball;            recall      share of reals in any fake ball
    density     real balls that a fake lies in, mean / k;   coverage    share of real balls that hold a fake

    Args:
        real:             features [N, D]
        fake:             features [M, D]
        precision_recall: k of the first two, 3 in the paper
        density_coverage: k of the others, 5 in the paper

    Raises:
        ValueError: for a set of no more images than neighbours.
    """
    most = max(precision_recall, density_coverage)
    if min(len(real), len(fake)) <= most:
        raise ValueError(f"{most} neighbours need more images a side than {len(real)} and {len(fake)}")
    near = [torch.cat([d.topk(most + 1, largest=False).values for _, d in distances(x, x)]) for x in (real, fake)]
    reach, reach_of_fake = (x[:, precision_recall] for x in near)  # column 0 is the image itself
    reach_of_density = near[0][:, density_coverage]
    in_real = torch.zeros(len(fake), dtype=torch.bool)
    hits = torch.zeros(len(fake), dtype=torch.int64)
    in_fake, covered = [], []
    for start, d in distances(real, fake):  # [n, M]
        rows = slice(start, start + len(d))
        in_real |= (d <= reach[rows, None]).any(0)
        in_fake.append((d <= reach_of_fake).any(1))
        hits += (d <= reach_of_density[rows, None]).sum(0)
        covered.append(d.amin(1) <= reach_of_density[rows])
    return {
        "precision": float(in_real.double().mean()),
        "recall": float(torch.cat(in_fake).double().mean()),
        "density": float(hits.double().mean()) / density_coverage,
        "coverage": float(torch.cat(covered).double().mean()),
    }


def kernel_distance(real: Tensor, fake: Tensor, seed: int, subsets: int = 100, most: int = 1000) -> dict[str, Any]:
    """KID (Binkowski et al. 2018), by torch-fidelity: the unbiased squared MMD of the cubic kernel, its mean and spread
    over subsets of both sides. There is no spread where a side is its own subset.

    Args:
        real:    features [N, D]
        fake:    features [M, D]
        seed:    of the subsets
        subsets: how many
        most:    images of a subset, or as many as a side has
    """
    size = min(most, len(real), len(fake))
    metric = kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    mean, spread = (float(metric[f"kernel_inception_distance_{part}"]) for part in ("mean", "std"))
    drawn = size < min(len(real), len(fake))
    return {"value": mean, "std": spread if drawn else None, "subsets": subsets, "subset_size": size}


def inception_score(logits: Tensor, seed: int, splits: int = 10) -> dict[str, Any]:
    """exp E KL(p(y | image) || p(y)) (Salimans et al. 2016), by torch-fidelity: mean and spread over equal splits.

    Args:
        logits: [N, K]
        seed:   of the order in which images are dealt to splits
        splits: how many, or as many as there are images
    """
    splits = min(splits, len(logits))
    metric = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return {"value": metric["inception_score_mean"], "std": metric["inception_score_std"], "splits": splits}


def inception_score_in_order(logits: Tensor, size: int = ADMS_SPLIT) -> dict[str, Any]:
    """The same over the splits of ADM's evaluator (Dhariwal & Nichol 2021): each so many images in the order in which
    they come, the last one of what is left. Of 50,000 samples that are made class by class it is much less.

    Args:
        logits: [N, K], in the samples' order
        size:   images of a split
    """
    scores = []
    for part in logits.double().split(size):
        log_p = part.log_softmax(1)  # [n, K]
        log_mean = log_p.logsumexp(0) - math.log(len(part))  # of p(y)
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item())
    return {"value": fmean(scores), "std": pstdev(scores), "splits": f"{size} in order"}
