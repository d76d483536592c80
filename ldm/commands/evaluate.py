"""Score samples against real images, and the autoencoder's reconstructions: metrics.json."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ldm import __version__
from ldm.commands.evaluate_options import EvaluateOptions
from ldm.commands.evaluate_scores import PICTURE, chosen, folder_of, request
from ldm.commands.options import build
from ldm.commands.run_folder import build_loggers
from ldm.data.sources import Source
from ldm.evaluation.comparison import comparison, read
from ldm.evaluation.result_files import RECONSTRUCTION, MetricsFile, check_scores
from ldm.evaluation.sample_scores import FEW, Reader
from ldm.runtime.files import sha256
from ldm.runtime.loggers import Artifact, artifact, record
from ldm.runtime.memory import check_batch
from ldm.runtime.ranks import gather, join_ranks, pick_device, precision


def main(options: EvaluateOptions, run: Path) -> float | None:
    source: Source = build(options.data)
    device = pick_device(options.device)
    check_batch(options.batch_size, 3, source.resolution, source.resolution)
    asked = request(options, run, source, device)
    scores = chosen(asked)
    options.keep_others(run)
    rank, world = join_ranks()
    reader = Reader(
        device=device, batch_size=options.batch_size, num_workers=options.num_workers, rank=rank, world=world
    )
    shares = gather([score.look(reader) for score in scores])
    if rank != 0:
        return None
    metrics: dict[str, Any] = {}
    for i, score in enumerate(scores):
        metrics |= score.compute([share[i] for share in shares])
    check_scores(metrics, "metrics.json")
    options.begin(run)
    stamp = asked.stamp | ({} if asked.samples is None else asked.samples.card)
    MetricsFile(samples=stamp, versions=versions(device), **metrics).write(run / "metrics.json")
    values = report(metrics, run)
    source.report_skipped()
    record(
        build_loggers(options.logger, run),
        options.plain(),
        used=used(options, metrics, run),
        made=[artifact("metrics", sha256(run / "metrics.json"), run / "metrics.json")],
        scores=values,
        pictures={"neighbours": run / PICTURE} if "memorisation" in metrics else {},
    )
    return values.get("frechet_distance")


def versions(device: torch.device) -> dict[str, str]:
    """The programs that a number depends on, and how they compute."""
    libraries = {name: version(name) for name in ("torch-fidelity", "torchmetrics", "lpips")}
    computed = f"{precision(device)} features, float64 sums"
    return {"ldm": __version__, "torch": torch.__version__, "precision": computed} | libraries


def report(metrics: dict[str, Any], run: Path) -> dict[str, float]:
    """Print the scores, and return them flat."""
    values = {name: score["value"] for name, score in metrics.items() if "value" in score}
    reconstruction = metrics.get("reconstruction", {})
    values |= {f"reconstruction/{k}": reconstruction[k] for k in RECONSTRUCTION if k in reconstruction}
    for name, value in values.items():
        print(f"{name.replace('/', ' ')}: {value:.4g}")
    if "frechet_distance" in metrics:
        report_distance(metrics["frechet_distance"])
    if "kernel_distance" in metrics and "precision" not in metrics:
        kept = metrics["kernel_distance"]["depends"]["kept"]
        print(f"precision, recall, density and coverage are left out: {kept[0]} and {kept[1]} images are too few")
    print(f"scores and what each depends on: {run}/metrics.json")
    return values


def report_distance(distance: dict[str, Any]) -> None:
    """Print what the Frechet distance is of, and what it is worth with so many images."""
    depends, reference = distance["depends"], distance["depends"]["reference"]
    print(f"features: {depends['extractor']}; reference: {reference.get('set', 'known statistics')}")
    count, real = depends["samples"], reference["images"]
    if min(count, real or count) < FEW:
        bias = distance["expected_of_perfect_samples"]
        perfect = f"{bias:.4g} (for Gaussian features)" if bias is not None else "what so few images do not tell"
        print(
            f"{count} samples against {real or 'unknown'} images, fewer than {FEW}: perfect samples would score "
            f"{perfect}, and only distances of equally many may be compared"
        )


def used(options: EvaluateOptions, metrics: dict[str, Any], run: Path) -> list[Artifact]:
    """What these scores are of, for the loggers' lineage."""
    artifacts = []
    if options.samples is not None and (file := folder_of(options.samples) / "samples.npz").exists():
        artifacts.append(artifact("samples", sha256(file), file.parent))
    if "reconstruction" in metrics:
        artifacts.append(artifact("autoencoder", metrics["reconstruction"]["autoencoder"], run))
    return artifacts


def compare(paths: list[str]) -> None:
    """Print what `--compare` is asked for; exit status 1 where a number may not be compared."""
    try:
        lines, fair = comparison(*read(paths))
    except ValueError as error:
        sys.exit(f"ldm: error: {error}")
    print("\n".join(lines))
    sys.exit(0 if fair else 1)
