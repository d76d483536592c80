"""What a set of images is compared by: moments of its features, in float64, and some of the features themselves."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ldm.files import atomic_write, sha256


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of N images' features.

    Args:
        count: N; None where a foreign file does not say.
        mean, covariance: [D] and [D, D], float64; the covariance divides by N - 1.
        features: [M, D] float32, of all images or of evenly spread ones; None in a foreign file.
        card: what they depend on.
    """

    count: int | None
    mean: Tensor
    covariance: Tensor
    features: Tensor | None
    card: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write an .npz with mu and sigma, as pytorch-fid and ADM name them, beside what they leave out."""
        arrays: dict[str, Any] = {
            "mu": self.mean.numpy(),
            "sigma": self.covariance.numpy(),
            "card": np.array(json.dumps(self.card)),
        }
        if self.count is not None:
            arrays["count"] = np.array(self.count)
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with atomic_write(path) as file:
            file.write(buffer.getvalue())

    @classmethod
    def load(cls, path: Path, end: str = "") -> "Statistics":
        """Read such an .npz, ours or one with mu and sigma alone; `end` is what the names of these two end in."""
        with np.load(path) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name + end].astype(np.float64)) for name in ("mu", "sigma"))
            return cls(
                count=int(arrays["count"]) if "count" in arrays else None,
                mean=mean,
                covariance=covariance,
                features=torch.from_numpy(arrays["features"]) if "features" in arrays else None,
                card=json.loads(str(arrays["card"])) if "card" in arrays else {"statistics": sha256(path)[:16]},
            )


def known_statistics(path: Path) -> dict[str, Statistics]:
    """By kind of features, what a file of statistics holds; {} if it is something else. ADM's files have those of sFID,
    too, as mu_s and sigma_s."""
    if path.suffix != ".npz" or not path.exists():
        return {}
    with np.load(path) as arrays:
        kinds = {"features": "", "spatial": "_s"}
        names = {kind: end for kind, end in kinds.items() if f"mu{end}" in arrays and f"sigma{end}" in arrays}
    return {kind: Statistics.load(path, end) for kind, end in names.items()}


class Moments(Metric):
    """update(features [B, D]); statistics() -> Statistics without features. Sums are float64, over all ranks."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(num_features, num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)
        self.count: Tensor
        self.total: Tensor
        self.outer: Tensor

    def update(self, features: Tensor) -> None:
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def merge(self, other: "Moments") -> None:
        """Add what another rank has seen."""
        for name in ("count", "total", "outer"):
            setattr(self, name, getattr(self, name) + getattr(other, name).to(self.count.device))

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """N, the mean and the covariance, over all ranks."""
        mean = self.total / self.count
        return self.count, mean, (self.outer - self.count * mean.outer(mean)) / (self.count - 1)

    def statistics(self) -> Statistics:
        """ValueError for fewer than two images."""
        count, mean, covariance = (value.cpu() for value in self.compute())
        if count < 2:
            raise ValueError(f"a Frechet distance needs two images a side, not {int(count)}")
        return Statistics(count=int(count), mean=mean, covariance=covariance, features=None, card={})


class Subset:
    """Keeps at most `most` of a stream's rows, chosen by a hash of what is in them: evenly, whatever the stream's
    period; the same rows in the same order whichever ranks have seen them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """[B, D]"""
        self.rows.append(rows.float().cpu())
        if sum(map(len, self.rows)) > 2 * self.most:
            self.rows = [self.take()]

    def take(self) -> Tensor:
        """[M, D]"""
        rows = torch.cat(self.rows)
        places = rows.double() @ torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).sqrt()
        return rows[(1e4 * places).frac().abs().argsort()[: self.most]].clone()
