"""What training runs have left behind, and whether two of them learned the same."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.checkpoint import newest, read

COMPARED = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")


def checkpoint(run: str | Path, kind: str) -> dict[str, Any]:
    """The newest checkpoint of a run folder; kind is autoencoder or diffusion."""
    newest_file = newest(Path(run))
    assert newest_file is not None, f"{run} holds no checkpoint"
    return read(newest_file, kind)


def weights(run: str | Path, kind: str) -> dict[str, torch.Tensor]:
    """The trained weights, not their average."""
    return checkpoint(run, kind)["current_model_state"]


def rows(run: str | Path) -> list[dict[str, str]]:
    """metrics.csv, a dict a row."""
    with open(Path(run) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def learned(run: str | Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the machine's speed."""
    return [{name: value for name, value in row.items() if not name.startswith("speed/")} for row in rows(run)]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Compare nested containers, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_pictures(one: str | Path, other: str | Path) -> None:
    """The PNGs in images/ of two run folders, and their grids, are the same but for rounding."""
    names = [sorted(path.relative_to(run) for path in Path(run).rglob("*.png")) for run in (one, other)]
    assert names[0] == names[1]
    assert names[0]
    for name in names[0]:
        ours, theirs = (np.asarray(Image.open(Path(run, name))).astype(int) for run in (one, other))
        assert ours.shape == theirs.shape, name
        assert abs(ours - theirs).max() <= 1, name


def assert_same_training(one: str | Path, other: str | Path, kind: str) -> None:
    """Weights, averages and optimisers of two run folders are equal bit for bit."""
    ones, others = checkpoint(one, kind), checkpoint(other, kind)
    for key in COMPARED:
        assert_equal(ones[key], others[key], key)


def assert_close_weights(one: str | Path, other: str | Path, kind: str, rtol: float, atol: float) -> None:
    """The trained weights of two run folders are equal up to rounding."""
    ones, others = weights(one, kind), weights(other, kind)
    assert list(ones) == list(others)
    for key, tensor in ones.items():
        torch.testing.assert_close({key: others[key]}, {key: tensor}, rtol=rtol, atol=atol)  # names the key
