"""Teacher and students on the digits, by 1, 2, 4 and 8 evaluations (`make students`).

    python jobs/students.py RUNS OUT.png     RUNS holds diffusion, students/{8,4,2,1}, reflow, meanflow and consistent

Scores 1,000 samples each by an SVC's accuracy at the labels that they were sampled for, and by the Frechet distance on
8 x 8 pixels to the training digits; draws the distance and what each makes by one evaluation, prints the table and
writes OUT.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

import ldm
from ldm.data.image_data import in_order
from ldm.data.sources import Digits
from ldm.diffusion.samplers import jump
from ldm.generate.model import LatentDiffusionModel
from ldm.images import annotate, grid
from ldm.metrics.classifier import PixelClassifier
from ldm.metrics.features import Pixels
from ldm.metrics.frechet import distance_of_images

BUDGETS = (1, 2, 4, 8)  # evaluations; the teacher's are of two networks each


def renoised(denoise: Any, path: Any, x: Tensor, times: Tensor, *, noise: Any = torch.randn_like) -> Tensor:
    """Multistep consistency sampling."""
    return jump(denoise, path, x, times, renoise=True, noise=noise)


ROWS: dict[str, tuple[str, Any]] = {  # a run, or one for each budget; and its sampler
    "teacher": ("diffusion", "euler"),
    "progressive": ("students/{budget}", "ddim"),
    "reflow": ("reflow", "euler"),
    "MeanFlow": ("meanflow", "jump"),
    "consistency": ("consistent", renoised),
}


def main(runs: Path, out: Path, num: int = 1000) -> None:
    """Sample `num` images with each budget of evaluations, score, draw."""
    train = list(in_order(Digits(resolution=32), "train", 500, 0))
    images, labels = (torch.cat(part) for part in zip(*train, strict=True))
    classifier, wanted = PixelClassifier(images, labels), torch.arange(num) % 10
    table: dict[str, list[dict[str, float]]] = {}
    pictures: dict[str, Tensor] = {}
    for name, (run, sampler) in ROWS.items():
        table[name] = []
        for budget in BUDGETS:
            folder = runs / run.format(budget=budget)
            if not folder.exists() and budget > 1 and "{" in run:
                continue  # a chain that begins later
            model = ldm.load(folder, device="cpu")
            assert isinstance(model, LatentDiffusionModel)
            generator = model.generator(sampler=sampler, steps=budget, grid="uniform")
            samples, evaluations = generator.images(range(num), wanted)
            distance = distance_of_images(Pixels(), [images], [samples])
            row = {"evaluations": evaluations, "accuracy": classifier.accuracy(samples, wanted), "distance": distance}
            table[name].append(row)
            pictures.setdefault(name, samples[:10])
            print(name, row, flush=True)
    print(
        f"\n| accuracy / distance after N evaluations | {' | '.join(map(str, BUDGETS))} |\n|---|{'---|' * len(BUDGETS)}"
    )
    for name, rows in table.items():
        by_budget = {row["evaluations"]: f"{row['accuracy']:.1%} / {row['distance']:.2f}" for row in rows}
        print(f"| {name} | {' | '.join(by_budget.get(budget, '') for budget in BUDGETS)} |")
    out.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    draw(table, pictures, out)


def draw(table: dict[str, list[dict[str, float]]], pictures: dict[str, Tensor], out: Path) -> None:
    """Distance against evaluations, and ten samples of each by one evaluation."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axis, shown = figure.subplots(1, 2, width_ratios=[1, 1.4])
    for name, rows in table.items():
        axis.plot([row["evaluations"] for row in rows], [row["distance"] for row in rows], marker="o", label=name)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="evaluations (the teacher's of two networks each)",
        title="Frechet distance on 8 x 8 pixels",
    )
    axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.legend(fontsize=8)
    picture = annotate(grid(torch.cat(list(pictures.values())), 10), rows=list(pictures))
    shown.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    shown.set(title="by one evaluation (progressive: its student of one step)")
    shown.axis("off")
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
