"""Quality of a model of codes against its number of parallel steps, for each rule that divides the places among them.

    python jobs/parallel_steps.py runs/ardm runs/bound OUT.png num=2000 guidance=1.5 -- data=shards data.root=runs/mnist

runs/bound is of `ldm likelihood`. What stands before the -- goes to `ldm sample`, what stands after it to
`ldm evaluate`. Prints a table, writes OUT.json and draws the Frechet distance.
"""

import json
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from ldm.evaluation.result_files import LikelihoodFile, MetricsFile

STEPS = (1, 2, 4, 8, 16, 32)
RULES = ("uniform", "cosine", "planned")


def point(model: str, bound: str, rule: str, steps: int, given: tuple[list[str], list[str]]) -> tuple[float, float]:
    """Frechet distance and class accuracy by so many steps; accuracy -1 where there is no classifier."""
    name, (sampling, scoring) = f"steps/{rule}-{steps}", given
    losses = [f"grid.losses={bound}"] if rule == "planned" else []
    called("sample", f"run={name}", f"model={model}", f"grid={rule}", *losses, f"sampler.steps={steps}", *sampling)
    called("evaluate", f"run={name}-metrics", f"samples=runs/{name}", "reconstruction=false", *scoring)
    metrics = MetricsFile.read(Path(f"runs/{name}-metrics/metrics.json"))
    distance, accuracy = metrics.value("frechet_distance"), metrics.value("class_accuracy")
    assert distance is not None
    return distance, -1.0 if accuracy is None else accuracy


def called(command: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "ldm", command, "overwrite=true", *words], check=True)


def main(model: str, bound: str, out: Path, given: tuple[list[str], list[str]]) -> None:
    """A point for each rule and number of steps, and one for a step at each place."""
    places = len((LikelihoodFile.read(Path(bound) / "likelihood.json").model_extra or {})["by_hidden"])
    counts = [steps for steps in STEPS if steps < places]
    table = {rule: {steps: point(model, bound, rule, steps, given) for steps in counts} for rule in RULES}
    exact = point(model, bound, "uniform", places, given)  # one by one, all rules are the same
    rows = {rule: row | {places: exact} for rule, row in table.items()}
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n| steps | {' | '.join(map(str, [*counts, places]))} |\n|---|{'---|' * (len(counts) + 1)}")
    for rule, row in rows.items():
        cells = [f"{fd:.3g}" + (f", {right:.1%}" if right >= 0 else "") for fd, right in row.values()]
        print(f"| {rule} | {' | '.join(cells)} |")
    draw(rows, out)


def draw(rows: dict[str, dict[int, tuple[float, float]]], out: Path) -> None:
    """The distance against the steps."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axis = figure.subplots()
    for rule, row in rows.items():
        axis.plot(list(row), [distance for distance, _ in row.values()], marker="o", label=rule)
    axis.set(xscale="log", yscale="log", xlabel="parallel steps", title="Frechet distance of samples")
    axis.set_xticks(list(row), [str(steps) for steps in row])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.legend()
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    ours = sys.argv[1:]
    cut = ours.index("--") if "--" in ours else len(ours)
    if cut < 3:
        sys.exit("python jobs/parallel_steps.py MODEL BOUND OUT.png [words of ldm sample] -- [words of ldm evaluate]")
    main(ours[0], ours[1], Path(ours[2]), (ours[3:cut], ours[cut + 1 :]))
