"""`ldm evaluate --compare A.json B.json`: which of two files' numbers may be compared, and what differs."""

import json
from pathlib import Path
from typing import Any

from ldm.runtime.files import flat

WRONG = "NOT comparable"
RECONSTRUCTION = {"psnr": None, "ssim": None, "lpips": "lpips_weights", "rfd": "extractor"}  # and the network of each

# of a set's card: what does not name its place
OF_PIXELS = ("images", "pixels", "extractor", "extractor_resize", "precision")

# what changes an unbiased score's noise, but not what it is to be expected to be
NOISE = {
    "kernel_distance": ("samples", "kept", "seed"),
    "class_accuracy": ("samples",),
    "inception_score": ("seed",),
    "bits_per_dim": ("seed", "batch_size"),
}


def read(paths: list[str]) -> list[dict[str, Any]]:
    """The two files; ValueError, naming the one that is none."""
    if len(paths) != 2:
        raise ValueError("--compare wants two files of `ldm evaluate`: A/metrics.json B/metrics.json")
    files = []
    for path in map(Path, paths):
        path = path / "metrics.json" if path.is_dir() else path
        try:
            files.append(json.loads(path.read_text()))
            files[-1]["samples"], files[-1]["versions"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no metrics.json of this `ldm evaluate`: {error!r}") from None
    return files


def comparison(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines to print, and whether all numbers that both have were measured alike.

    A number's `depends` says how it was measured: images, extractor, reference. What was measured, the samples' stamp
    with their model, sampler and seed, may differ: that is what one compares.
    """
    lines, fair = [], True
    ours, theirs = numbers(a), numbers(b)
    for name in [name for name in ours if name in theirs]:
        (value, depends), (other, others) = ours[name], theirs[name]
        differ = differences(*without_names(depends, others))
        judged = judgement(differ, NOISE.get(name, ()))
        lines += [f"{name}: {value:.4g} and {other:.4g}: {judged}", *(f"    {line}" for line in lines_of(differ))]
        fair = fair and judged != WRONG
    if not ours.keys() & theirs.keys():
        lines, fair = ["the files have no score in common"], False
    if missing := sorted(ours.keys() ^ theirs.keys()):
        lines.append(f"in one of the files only: {', '.join(missing)}")
    lines.append("what differs between the samples and the autoencoders:")
    lines += [f"    {line}" for line in lines_of(differences(measured(a), measured(b)))] or ["    nothing"]
    if versions := lines_of(differences(a["versions"], b["versions"])):
        lines += ["what differs between the programs:", *(f"    {line}" for line in versions)]
    return lines, fair


def judgement(differ: dict[str, tuple[Any, Any]], noise: tuple[str, ...]) -> str:
    """Of two numbers whose dependencies differ in these keys, where those of `noise` are harmless but for noise."""
    harmful = {key: pair for key, pair in differ.items() if key not in noise}
    if any("unknown" not in pair for pair in harmful.values()):
        return WRONG
    if harmful:
        return "comparable, if what is unknown is alike"
    return "comparable, but for more or other noise" if differ else "comparable"


def numbers(metrics: dict[str, Any]) -> dict[str, tuple[float, dict[str, Any]]]:
    """Each score of a metrics.json, and what it depends on."""
    found = {name: (score["value"], score["depends"]) for name, score in metrics.items() if "value" in score}
    own = metrics.get("reconstruction", {})
    for name in [name for name in RECONSTRUCTION if name in own]:
        others = set(RECONSTRUCTION.values()) - {RECONSTRUCTION[name]}
        depends = {key: value for key, value in own["depends"].items() if key not in others}
        found[f"reconstruction {name}"] = own[name], depends
    return found


def without_names(*depends: dict[str, Any]) -> list[dict[str, Any]]:
    """Where two sets have the same pixels, it says nothing that one is a folder and the other its shards."""
    named = [dict(one) for one in depends]
    for key in named[0].keys() & named[1].keys():
        sets = [one[key] for one in named]
        if all(isinstance(one, dict) and one.get("pixels") for one in sets) and sets[0]["pixels"] == sets[1]["pixels"]:
            for one in named:
                one[key] = {name: one[key].get(name) for name in OF_PIXELS}
    return named


def measured(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the scores are of: the samples' stamp, and whose reconstructions."""
    own = {k: v for k, v in metrics.get("reconstruction", {}).items() if k == "autoencoder"}
    return metrics["samples"] | metrics.get("frechet_distance", {}).get("of", {}) | own


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each key that differs between two nested dicts."""
    ours, theirs = flat(a), flat(b)
    keys = dict.fromkeys([*ours, *theirs])
    return {k: (ours.get(k, "-"), theirs.get(k, "-")) for k in keys if ours.get(k) != theirs.get(k)}


def lines_of(differ: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{key}: {ours} and {theirs}" for key, (ours, theirs) in differ.items()]
