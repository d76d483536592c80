"""Numbers, values and names as a person reads them."""

import json
import os
from pathlib import Path
from typing import Any

LONGEST = 20  # entries of a list that are written out
NOT_RECORDED = "not recorded"
KINDS = {
    "autoencoder": "Autoencoder",
    "latents": "Latents",
    "diffusion": "Diffusion model",
    "samples": "Samples",
    "scores": "Scores",
    "likelihood": "Likelihood",
    "other": "Another run",
}
SCORES = {  # and how they are to be read
    "frechet_distance": ("Fréchet distance", "lower is better"),
    "spatial_frechet_distance": ("Spatial Fréchet distance", "lower is better"),
    "kernel_distance": ("Kernel distance", "lower is better"),
    "precision": ("Precision", "higher is better"),
    "recall": ("Recall", "higher is better"),
    "density": ("Density", "higher is better"),
    "coverage": ("Coverage", "higher is better"),
    "inception_score": ("Inception score", "higher is better"),
    "class_accuracy": ("Class accuracy", "higher is better"),
    "bits_per_dim": ("Bits per dimension", "lower is better"),
    "latent_bits_per_dim": ("Bits per dimension, latents", "lower is better"),
    "image_bits_per_dim_at_most": ("Bits per dimension, images, at most", "lower is better"),
    "reconstruction psnr": ("Reconstruction PSNR (dB)", "higher is better"),
    "reconstruction ssim": ("Reconstruction SSIM", "higher is better"),
    "reconstruction lpips": ("Reconstruction LPIPS", "lower is better"),
    "reconstruction rfd": ("Reconstruction Fréchet distance", "lower is better"),
}
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def score_name(name: str) -> str:
    return SCORES.get(name, (name.replace("_", " "), ""))[0]


def score_hint(name: str) -> str:
    return SCORES.get(name, ("", ""))[1]


def number(value: float) -> str:
    """1,500 of whole numbers, four digits of others."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def amount(value: float | None, unit: str) -> str:
    """7.16 TFLOP, 48.7 MB."""
    if value is None:
        return NOT_RECORDED
    size, prefix = next(((size, prefix) for size, prefix in UNITS if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g} {prefix}{unit}"


def duration(seconds: float | None) -> str:
    """45 s, 3 min 10 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes < 48 * 60
        else f"{minutes // 1440} d {minutes // 60 % 24} h"
    )


def counted(value: float | None) -> str:
    return NOT_RECORDED if value is None else number(value)


def value(given: Any) -> str:
    """A value of a file or a config, in one line."""
    if given is None or isinstance(given, bool):
        return json.dumps(given)
    if isinstance(given, float | int):
        return number(given) if isinstance(given, float) else f"{given:,}" if abs(given) >= 10_000 else str(given)
    if isinstance(given, list | tuple):
        more = f" and {len(given) - LONGEST:,} more" if len(given) > LONGEST else ""
        return ", ".join(map(value, given[:LONGEST])) + more or "none"
    if isinstance(given, dict):
        return ", ".join(f"{key} {value(inner)}" for key, inner in given.items()) or "none"
    return str(given)


def setting(given: Any) -> str:
    """A value of a config as its file has it."""
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def place(path: Path) -> str:
    """A folder as the reader knows it: from runs/ on, or its name."""
    parts = Path(os.path.abspath(path)).parts
    below = len(parts) - 1 - parts[::-1].index("runs") if "runs" in parts[:-1] else len(parts) - 1
    return "/".join(parts[below:])
