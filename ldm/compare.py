"""`ldm evaluate --compare A.json B.json`: which of two files' numbers may be compared, and what differs."""

import json
from pathlib import Path
from typing import Any

from ldm.files import flat

RECONSTRUCTION = {"psnr": None, "ssim": None, "lpips": "lpips_weights", "rfd": "extractor"}  # and the network of each

OF_PIXELS = ("images", "pixels", "extractor", "extractor_resize")  # of a reference's card: what does not name its place


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
        wrong = [line for line in differ if "unknown" not in line.split()]
        judged = "NOT comparable" if wrong else "comparable, if what is unknown is alike" if differ else "comparable"
        lines += [f"{name}: {value:.4f} and {other:.4f}: {judged}", *(f"    {line}" for line in differ)]
        fair = fair and not wrong
    if not ours.keys() & theirs.keys():
        lines, fair = ["the files have no score in common"], False
    if missing := sorted(ours.keys() ^ theirs.keys()):
        lines.append(f"in one of the files only: {', '.join(missing)}")
    lines.append("what differs between the samples and the autoencoders:")
    lines += [f"    {line}" for line in differences(measured(a), measured(b))] or ["    nothing"]
    if versions := differences(a["versions"], b["versions"]):
        lines += ["what differs between the programs:", *(f"    {line}" for line in versions)]
    return lines, fair


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
    """Where two references have the same pixels, it says nothing that one is a folder and the other its shards."""
    references = [one.get("reference", {}) for one in depends]
    if references[0].get("pixels") is None or len({reference.get("pixels") for reference in references}) > 1:
        return list(depends)
    named = [{key: reference.get(key) for key in OF_PIXELS} for reference in references]
    return [one | {"reference": reference} for one, reference in zip(depends, named, strict=True)]


def measured(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the scores are of: the samples' stamp, and whose reconstructions."""
    own = {k: v for k, v in metrics.get("reconstruction", {}).items() if k == "autoencoder"}
    return metrics["samples"] | metrics.get("frechet_distance", {}).get("of", {}) | own


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """One line for each key that differs between two nested dicts."""
    ours, theirs = flat(a), flat(b)
    keys = list(dict.fromkeys([*ours, *theirs]))
    return [f"{k}: {ours.get(k, '-')} and {theirs.get(k, '-')}" for k in keys if ours.get(k) != theirs.get(k)]
