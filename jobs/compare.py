"""Quality against network evaluations: samplers on the digits' ddpm, flow and OT-flow models (`make compare`).

    python jobs/compare.py RUNS OUT.png       RUNS holds compare-ddpm, compare-flow and compare-ot_flow

Scores 1,000 samples each by an SVC's accuracy at the labels that they were sampled for, and by the Frechet distance on
8 x 8 pixels to the training digits; draws both, prints the table and writes OUT.json.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import ldm
from ldm.data.image_data import in_order
from ldm.data.sources import Digits
from ldm.diffusion import samplers
from ldm.generate.model import LatentDiffusionModel
from ldm.metrics.classifier import PixelClassifier
from ldm.metrics.features import Pixels
from ldm.metrics.frechet import distance_of_images

BUDGETS = (1, 2, 4, 8, 16, 32)  # network evaluations
CURVES: dict[str, tuple[str, Any, int]] = {  # a run, a sampler, its evaluations a step
    "ddpm, ddim": ("compare-ddpm", partial(samplers.ddim, eta=0.0), 1),
    "ddpm, dpm++ 2m": ("compare-ddpm", samplers.dpmpp_2m, 1),
    "flow, euler": ("compare-flow", samplers.euler, 1),
    "flow, heun": ("compare-flow", samplers.heun, 2),
    "OT-flow, euler": ("compare-ot_flow", samplers.euler, 1),
}


def main(runs: Path, out: Path, budgets: tuple[int, ...] = BUDGETS, num: int = 1000) -> None:
    """Sample `num` images with each budget of evaluations, score, draw."""
    train = list(in_order(Digits(resolution=32), "train", 500, 0))
    images, labels = (torch.cat(part) for part in zip(*train, strict=True))
    classifier, wanted = PixelClassifier(images, labels), torch.arange(num) % 10
    table: dict[str, list[dict[str, float]]] = {}
    for name, (run, function, cost) in CURVES.items():
        model = ldm.load(runs / run, device="cpu")
        assert isinstance(model, LatentDiffusionModel)
        table[name] = []
        for budget in (budget for budget in budgets if budget >= cost):
            generator = model.generator(sampler=function, steps=budget // cost, grid="uniform", guidance=2.0)
            samples, evaluations = generator.images(range(num), wanted)
            distance = distance_of_images(Pixels(), [images], [samples])
            row = {"evaluations": evaluations, "accuracy": classifier.accuracy(samples, wanted), "distance": distance}
            table[name].append(row)
            print(name, row, flush=True)
    print(f"\n| accuracy / distance at | {' | '.join(map(str, budgets))} |\n|---|{'---|' * len(budgets)}")
    for name, rows in table.items():
        cells = [""] * (len(budgets) - len(rows)) + [f"{row['accuracy']:.1%} / {row['distance']:.2f}" for row in rows]
        print(f"| {name} | {' | '.join(cells)} |")
    out.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    draw(table, out)


def draw(table: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Accuracy and distance against evaluations."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, key in zip(figure.subplots(1, 2), ("accuracy", "distance"), strict=True):
        for name, rows in table.items():
            axis.plot([row["evaluations"] for row in rows], [row[key] for row in rows], marker="o", label=name)
        axis.set(xscale="log", xlabel="network evaluations", title=key, xticks=BUDGETS, xticklabels=BUDGETS)
        if key == "distance":
            axis.set_yscale("log")
            axis.set_yticks([0.1, 0.2, 0.5, 1.0, 2.0], ["0.1", "0.2", "0.5", "1", "2"])
        axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
