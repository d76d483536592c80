"""What a set of images is compared by: moments of its features, in float64, and some of the features themselves.

Sets are told apart by their pixels, in any order: each image has a hash, and a set the sum of them.
"""

import io
import json
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ldm.card import not_plain
from ldm.metrics.array_files import ArrayFile
from ldm.runtime.files import atomic_write, sha256

ROUNDING = 1e-4  # of a covariance's largest variance: by so much, files in single precision are no covariance
AGAIN = "compute these statistics again"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics of N images' features.

    Args:
        count:      N; None where a foreign file does not say
        mean:       [D], float64
        covariance: [D, D], float64, divided by N - 1
        features:   [M, D], float32, of all images or of evenly spread ones; None in a foreign file
        card:       what they depend on
    """

    count: int | None
    mean: Tensor
    covariance: Tensor
    features: Tensor | None
    card: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write an .npz: mu and sigma, as pytorch-fid and ADM name them; count, features and card, which these lack."""
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
        """Read such an .npz, or one with mu and sigma alone; `end` is what the names of these two end in.

        Raises:
            ValueError: naming the file and the array, if it is damaged or holds no statistics of anything.
        """
        arrays = ArrayFile(path)
        mean, covariance = (_numbers(arrays, name + end) for name in ("mu", "sigma"))
        if mean.dim() != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"{path}: mu{end} has {list(mean.shape)} numbers, sigma{end} {list(covariance.shape)}")
        _check_covariance(covariance, f"{path}: sigma{end}")
        count = _count(arrays) if "count" in arrays else None
        features = _numbers(arrays, "features").float() if "features" in arrays and not end else None
        if features is not None and (features.shape[1:] != mean.shape or not 0 < len(features) <= (count or np.inf)):
            raise ValueError(
                f"{path}: features is {list(features.shape)}, of {count} images with {len(mean)} features each: {AGAIN}"
            )
        card = _card(arrays) if "card" in arrays else {"statistics": sha256(path)[:16]}
        return cls(count=count, mean=mean, covariance=covariance, features=features, card=card)


def _numbers(arrays: ArrayFile, name: str) -> Tensor:
    """An array as float64; ValueError if it holds anything but finite numbers."""
    array = arrays.read(name)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{arrays.path}: {name} is of {array.dtype}, not of numbers: {AGAIN}")
    numbers = torch.from_numpy(array.astype(np.float64))
    if not numbers.isfinite().all():
        raise ValueError(f"{arrays.path}: {name} holds values that are not finite: {AGAIN}")
    return numbers


def _count(arrays: ArrayFile) -> int:
    array = arrays.read("count")
    if array.dtype.kind not in "iu" or array.shape != () or not 2 <= int(array) < 1 << 53:
        told = array if array.shape == () else f"an array of {list(array.shape)}"
        raise ValueError(f"{arrays.path}: count is {told}, not a whole number of at least 2: {AGAIN}")
    return int(array)


def _card(arrays: ArrayFile) -> dict[str, Any]:
    array = arrays.read("card")
    try:
        card: Any = json.loads(str(array)) if array.dtype.kind == "U" and array.shape == () else None
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or not_plain(card) is not None:
        raise ValueError(f"{arrays.path}: card is no JSON text of plain data: {AGAIN}")
    plain: dict[str, Any] = card
    return plain


def _check_covariance(covariance: Tensor, named: str) -> None:
    """ValueError if a matrix [D, D] is asymmetric, or has a negative eigenvalue: no features have such a covariance."""
    rounding = ROUNDING * covariance.diagonal().abs().max()
    if (covariance - covariance.T).abs().max() > rounding:
        raise ValueError(f"{named} is not symmetric, so it is no covariance: {AGAIN}")
    room = (rounding + torch.finfo(torch.float64).tiny) * torch.eye(len(covariance), dtype=torch.float64)
    if torch.linalg.cholesky_ex((covariance + covariance.T) / 2 + room).info != 0:
        raise ValueError(f"{named} has a negative eigenvalue, so it is no covariance: {AGAIN}")


def known_statistics(path: Path) -> dict[str, Statistics]:
    """What a file of statistics holds, by kind of features; {} if it is something else. ADM's files have those of sFID,
    too, as mu_s and sigma_s.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    if path.suffix != ".npz" or not path.exists():
        return {}
    arrays = ArrayFile(path)
    kinds = {"features": "", "spatial": "_s"}
    names = {kind: end for kind, end in kinds.items() if f"mu{end}" in arrays and f"sigma{end}" in arrays}
    if names and "features" not in names:
        raise ValueError(f"{path} has mu_s and sigma_s without mu and sigma")
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
        """Without features and card.

        Raises:
            ValueError: for fewer than two images.
        """
        count, mean, covariance = (value.cpu() for value in self.compute())
        if count < 2:
            raise ValueError(
                f"a Frechet distance needs two images a side, not {int(count)}: of the samples, the reference or the "
                "held-out images; or pass features=null"
            )
        if not mean.isfinite().all() or not covariance.isfinite().all():
            raise ValueError(
                "the features of some images are not finite: what features= names is damaged, or not for such images"
            )
        return Statistics(count=int(count), mean=mean, covariance=covariance, features=None, card={})


def pixel_hashes(image: Tensor) -> Tensor:
    """int64 [B] of images, uint8 [B, 3, H, W]: the same for an image on any machine and in any batch."""
    return torch.tensor([_integer(one.tobytes()) for one in image.cpu().contiguous().numpy()], dtype=torch.int64)


def pixel_sum(image: Tensor) -> int:
    """The sum of the hashes of images, uint8 [B, 3, H, W]: those of a set's batches add up to the set's."""
    return sum(pixel_hashes(image).tolist())


def pixels_fingerprint(total: int) -> str:
    """Sixteen hexadecimal digits of the sum of a set's pixel hashes: equal for equal images in any order."""
    return f"{total % (1 << 64):016x}"


def _integer(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


class Subset:
    """Keeps the rows of a stream whose keys, int64, are the least, in the order of keys. Where keys are hashes of
    pixels, these rows are spread evenly, and they are the same for any number of ranks and any batch size.

    Equal images are not kept or left out together: the second of a kind has another key, drawn from the first's. (So
    ranks that share such images keep other ones of them than one process does.)

    Args:
        most: how many rows are kept
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.keys, self.rows = torch.empty(0, dtype=torch.int64), torch.empty(0)
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.seen: Counter[int] = Counter()

    def add(self, keys: Tensor, rows: Tensor) -> None:
        """Offer rows [B, ...] with their keys [B]."""
        self.join(torch.tensor([self._unused(key) for key in keys.tolist()], dtype=torch.int64), rows)

    def join(self, keys: Tensor, rows: Tensor) -> None:
        """Offer rows with keys as they are: those that another subset has kept."""
        self.waiting.append((keys, rows.cpu()))
        if sum(len(keys) for keys, _ in self.waiting) > self.most:
            self.settle()

    def _unused(self, key: int) -> int:
        """The key itself when it comes for the first time, then others drawn from it."""
        before = self.seen[key]
        self.seen[key] += 1
        return key if before == 0 else _integer(f"{key} {before}".encode())

    def settle(self) -> "Subset":
        """Drop the rows that are not kept."""
        if self.waiting:
            parts = [(self.keys, self.rows), *self.waiting] if len(self.keys) else self.waiting
            keys, rows = (torch.cat(columns) for columns in zip(*parts, strict=True))
            least = keys.argsort(stable=True)[: self.most]
            self.keys, self.rows, self.waiting = keys[least], rows[least], []
        return self

    def take(self) -> Tensor:
        """The rows that are kept, [M, ...]."""
        return self.settle().rows
