"""`ldm evaluate --compare A.json B.json`: which of two files' numbers may be compared, and what differs."""

from pathlib import Path
from typing import Any, NamedTuple

from ldm.evaluation.result_files import MetricsFile
from ldm.runtime.files import flat

NOT_COMPARABLE = "NOT comparable"
# the scores of reconstructions, and the key that names the network which each depends on
NETWORK_OF = {"psnr": None, "ssim": None, "lpips": "lpips_weights", "rfd": "extractor"}
# the keys of a set's card that say what its pixels are; the others say where it lies
OF_PIXELS = ("images", "pixels", "extractor", "extractor_resize", "precision")
# the keys that change an unbiased score's noise, but not its expectation
NOISE = {
    "kernel_distance": ("samples", "kept", "seed"),
    "class_accuracy": ("samples",),
    "inception_score": ("seed",),
    "bits_per_dim": ("seed", "batch_size"),
}


class Number(NamedTuple):
    """A score, and how it was measured."""

    value: float
    depends: dict[str, Any]


Differences = dict[str, tuple[Any, Any]]  # by key: its value in either file, "-" where a file has none


def read(paths: list[str]) -> list[dict[str, Any]]:
    """The contents of two files, or of the metrics.json in two run folders.

    Raises:
        ValueError: naming the file that `ldm evaluate` did not write.
    """
    if len(paths) != 2:
        raise ValueError("--compare wants two files of `ldm evaluate`: A/metrics.json B/metrics.json")
    files = []
    for path in map(Path, paths):
        path = path / "metrics.json" if path.is_dir() else path
        try:
            files.append(MetricsFile.read(path).model_dump())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no metrics.json of this `ldm evaluate`: {error}") from None
    return files


def comparison(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines to print, and whether all numbers that both files have were measured alike.

    How a number was measured, its `depends`, must be alike: images, extractor, reference. What was measured may differ,
    since that is what one compares: the samples' model, sampler and seed.
    """
    lines, alike = [], True
    numbers_a, numbers_b = numbers(a), numbers(b)
    for name in [name for name in numbers_a if name in numbers_b]:
        first, second = numbers_a[name], numbers_b[name]
        differ = differences(*without_places(first.depends, second.depends))
        verdict = judge(differ, NOISE.get(name, ()))
        lines += [f"{name}: {first.value:.4g} and {second.value:.4g}: {verdict}", *_indented(differ)]
        alike = alike and verdict != NOT_COMPARABLE
    if not numbers_a.keys() & numbers_b.keys():
        lines, alike = ["the files have no score in common"], False
    if in_one := sorted(numbers_a.keys() ^ numbers_b.keys()):
        lines.append(f"in one of the files only: {', '.join(in_one)}")
    lines.append("what differs between the samples and the autoencoders:")
    lines += _indented(differences(what_is_scored(a), what_is_scored(b))) or ["    nothing"]
    if versions := differences(a["versions"], b["versions"]):
        lines += ["what differs between the programs:", *_indented(versions)]
    return lines, alike


def judge(differ: Differences, noise: tuple[str, ...]) -> str:
    """Whether two numbers may be compared.

    Args:
        differ: in what they were measured differently
        noise : the keys in which a difference changes the noise alone
    """
    harmful = {key: pair for key, pair in differ.items() if key not in noise}
    if any("unknown" not in pair for pair in harmful.values()):
        return NOT_COMPARABLE
    if harmful:
        return "comparable, if what is unknown is alike"
    return "comparable, but for more or other noise" if differ else "comparable"


def numbers(metrics: dict[str, Any]) -> dict[str, Number]:
    """The scores of a metrics.json by name; those of reconstructions each with the network that it depends on alone."""
    scores = {
        name: Number(entry["value"], entry.get("depends", {})) for name, entry in metrics.items() if "value" in entry
    }
    reconstruction = metrics.get("reconstruction", {})
    for name in [name for name in NETWORK_OF if name in reconstruction]:
        others = set(NETWORK_OF.values()) - {NETWORK_OF[name]}
        depends = {key: value for key, value in reconstruction.get("depends", {}).items() if key not in others}
        scores[f"reconstruction {name}"] = Number(reconstruction[name], depends)
    return scores


def without_places(*depends: dict[str, Any]) -> list[dict[str, Any]]:
    """Two numbers' dependencies; sets of the same pixels look the same, be one a folder and the other its shards."""
    shown = [dict(one) for one in depends]
    for key in shown[0].keys() & shown[1].keys():
        sets = [one[key] for one in shown]
        if all(isinstance(one, dict) and one.get("pixels") for one in sets) and sets[0]["pixels"] == sets[1]["pixels"]:
            for one in shown:
                one[key] = {name: one[key].get(name) for name in OF_PIXELS}
    return shown


def what_is_scored(metrics: dict[str, Any]) -> dict[str, Any]:
    """The samples' stamp and pixels, and the autoencoder of the reconstructions."""
    autoencoder = {key: value for key, value in metrics.get("reconstruction", {}).items() if key == "autoencoder"}
    return metrics["samples"] | metrics.get("frechet_distance", {}).get("of", {}) | autoencoder


def differences(a: dict[str, Any], b: dict[str, Any]) -> Differences:
    """Each key, of those of inner dicts too, that differs between two dicts."""
    flat_a, flat_b = flat(a), flat(b)
    keys = dict.fromkeys([*flat_a, *flat_b])
    return {key: (flat_a.get(key, "-"), flat_b.get(key, "-")) for key in keys if flat_a.get(key) != flat_b.get(key)}


def _indented(differ: Differences) -> list[str]:
    return [f"    {key}: {first} and {second}" for key, (first, second) in differ.items()]
