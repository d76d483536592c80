"""How well the figures of `ldm diagnose` predict what `ldm probe` measures: rank correlations over a sweep.

python jobs/diffusability.py runs/autoencoders     # after: ldm probe -m sweep=autoencoders run=autoencoders
"""

import subprocess
import sys
from pathlib import Path

from scipy.stats import spearmanr

from ldm.commands.config_files import word
from ldm.evaluation.diagnosis import DiagnosisFile
from ldm.evaluation.result_files import MetricsFile

FIGURES = ("high_share", "effective_channels", "noise_error", "equivariance_error", "probe_accuracy")


def point(folder: Path) -> dict[str, float]:
    """A point's figures: of its latents, of its reconstructions, and the Frechet distance of its samples."""
    run, latents = (word(str(path)) for path in (folder.relative_to("runs") / "diagnosis", folder / "latents"))
    subprocess.run([sys.executable, "-m", "ldm", "diagnose", f"run={run}", f"latents={latents}"], check=True)
    found = DiagnosisFile.read(folder / "diagnosis/diagnosis.json")
    metrics = MetricsFile.read(folder / "metrics/metrics.json")
    values = {name: getattr(found, name) for name in FIGURES}
    values |= {name: metrics.value(f"reconstruction/{name}") for name in ("psnr", "rfd")}
    values["fd"] = metrics.value("frechet_distance")
    lacking = [name for name, value in values.items() if value is None]
    if lacking:
        sys.exit(f"{folder} says nothing of {', '.join(lacking)}: evaluate it anew, with reconstruction=true")
    return {name: float(value) for name, value in values.items()}


def main(sweep: Path) -> None:
    """Print a row a point, and the rank correlation of each figure with the Frechet distance."""
    points = {
        folder.parents[1].name: point(folder.parents[1]) for folder in sorted(sweep.glob("*/metrics/metrics.json"))
    }
    if len(points) < 3:
        sys.exit(f"{sweep} holds {len(points)} points with metrics/metrics.json: a rank correlation needs three")
    names = list(next(iter(points.values())))
    print("|".join(["| autoencoder ", *(f" {name} " for name in names), ""]))
    print("|".join(["", *["---"] * (len(names) + 1), ""]))
    for label, values in sorted(points.items(), key=lambda item: item[1]["fd"]):
        print("|".join([f"| {label} ", *(f" {values[name]:.3g} " for name in names), ""]))
    distances = [values["fd"] for values in points.values()]
    said = [f" {spearmanr([v[name] for v in points.values()], distances).statistic:+.2f} " for name in names[:-1]]
    print("|".join(["| Spearman with fd ", *said, "", ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
