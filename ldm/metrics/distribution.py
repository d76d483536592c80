"""Beyond the Frechet distance: neighbourhoods, kernels, entropies; all from features or logits, [N, D]."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

CHUNK = 1000  # rows of a matrix of distances at a time


def distances(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances, in float64: (start, [at most CHUNK, len(b)]) for a's rows from `start` on."""
    b = b.double()
    for start in range(0, len(a), CHUNK):
        yield start, torch.cdist(a[start : start + CHUNK].double(), b)


def neighbourhoods(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), [N, D] and [M, D].

    Each image has a ball that reaches to its k-th nearest neighbour in its own set.

    precision   share of fakes in any real ball;            recall      share of reals in any fake ball
    density     real balls that a fake lies in, mean / k;   coverage    share of real balls that hold a fake

    torch-fidelity has the first two only. ValueError for a set of fewer than neighbours + 1.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"neighbours={neighbours} needs more images a side than {len(real)} and {len(fake)}")
    radii = [
        torch.cat([d.kthvalue(neighbours + 1, dim=1).values for _, d in distances(x, x)]) for x in (real, fake)
    ]  # the nearest is the image itself
    in_real, in_fake, nearest = [], [], []
    for start, d in distances(real, fake):  # [n, M]
        own = radii[0][start : start + len(d), None]
        in_real.append((d <= own).sum(0))
        in_fake.append((d <= radii[1]).any(1))
        nearest.append(d.amin(1) <= own[:, 0])
    hits = torch.stack(in_real).sum(0)  # [M]: real balls that each fake lies in
    return {
        "precision": float((hits > 0).double().mean()),
        "recall": float(torch.cat(in_fake).double().mean()),
        "density": float(hits.double().mean()) / neighbours,
        "coverage": float(torch.cat(nearest).double().mean()),
    }


def kernel_distance(real: Tensor, fake: Tensor, seed: int, subsets: int = 100, most: int = 1000) -> dict[str, float]:
    """KID (Binkowski et al. 2018), by torch-fidelity: the unbiased squared MMD of the cubic kernel, mean and spread
    over subsets of `most` images a side (or as many as there are)."""
    size = min(most, len(real), len(fake))
    found = kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    mean, spread = (float(found[f"kernel_inception_distance_{part}"]) for part in ("mean", "std"))
    return {"value": mean, "std": spread, "subsets": subsets, "subset_size": size}


def inception_score(logits: Tensor, seed: int, splits: int = 10) -> dict[str, float]:
    """exp E KL(p(y | image) || p(y)) (Salimans et al. 2016), by torch-fidelity: mean and spread over ten splits."""
    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return {"value": found["inception_score_mean"], "std": found["inception_score_std"], "splits": splits}
