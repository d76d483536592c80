"""Straight and curved paths in the plane: one small network trained as ddpm, flow and OT-flow, and two students of the
flow, reflow and MeanFlow; and the same network as a continuous normalising flow, trained by maximum likelihood with the
adjoint (`make toy`).

    python jobs/toy.py OUT.png

Draws each one's trajectories from the same noise, and quality against the number of network evaluations: the sliced
Wasserstein-1 distance of 40,000 samples to as many of the data. (Of 4,000 that are drawn from the data itself it is
0.015 to 0.027 by chance alone.) Prints the table, and what a training by likelihood costs beside one by flow matching.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.diffusion.continuous_flow import negative_log_likelihood
from ldm.diffusion.coupling import Independent, OptimalTransport, Taught
from ldm.diffusion.meanflow import MeanFlow
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import BetaTablePath, LinearPath
from ldm.diffusion.samplers import ddim, euler, heun, jump
from ldm.diffusion.times import Discrete, Uniform, uniform_grid
from ldm.diffusion.weighting import Unweighted
from ldm.generate.model import LatentDiffusionModel
from ldm.latents import LatentStats
from ldm.models.layers import zero_init
from ldm.training.step_memory import Live

BATCH, NFES = 256, (1, 2, 4, 8, 16, 32)


class Net(nn.Module):
    """x_t [B, 2], t [B] and, of averages, s [B] -> [B, 2]."""

    frequencies: Tensor

    def __init__(self, average: bool = False, width: int = 128) -> None:
        super().__init__()
        # an average's target holds the derivative by t, which high frequencies drown in noise
        frequencies = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0]) if average else 2.0 ** torch.arange(5)
        self.register_buffer("frequencies", frequencies * torch.pi)
        self.first = nn.Linear(2 + 10, width)
        layers: list[nn.Module] = [nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))
        self.span = zero_init(nn.Linear(1, width))  # of averages, from s to t

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        angles = t[:, None] * self.frequencies
        h = self.first(torch.cat([x_t, angles.cos(), angles.sin()], dim=1))
        return self.layers(h if condition.s is None else h + self.span((t - condition.s)[:, None]))


def moons(n: int, seed: int) -> Tensor:
    """Two half-moons, zero mean and unit variance: [n, 2]."""
    points = torch.tensor(make_moons(n, noise=0.05, random_state=seed)[0], dtype=torch.float32)
    return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


def objectives() -> dict[str, tuple[Objective, Any]]:
    """Each with the sampler that it is walked by, one evaluation a step."""
    table = BetaTablePath(schedule="scaled_linear", num_steps=1000, beta_start=0.0015, beta_end=0.0195)
    flow: dict[str, Any] = {"path": LinearPath(), "parameterization": "velocity", "time_sampler": Uniform(eps=0.0)}
    ddpm: dict[str, Any] = {"path": table, "parameterization": "eps", "time_sampler": Discrete(num_steps=1000)}
    mean: dict[str, Any] = {"weighting": Unweighted(), "coupling": OptimalTransport(), "average": True}
    return {
        "ddpm": (Objective(**ddpm, weighting=Unweighted(), coupling=Independent()), ddim),
        "flow": (Objective(**flow, weighting=Unweighted(), coupling=Independent()), euler),
        "OT-flow": (Objective(**flow, weighting=Unweighted(), coupling=OptimalTransport()), euler),
        "reflow": (Objective(**flow, weighting=Unweighted(), coupling=Taught()), euler),
        "MeanFlow": (Objective(**flow, **mean), jump),
    }


Draw = Callable[[], tuple[Tensor, Tensor]]  # a batch: x0 and noise, [BATCH, 2] each


def independent() -> Draw:
    """Points of the moons, each with noise of its own."""
    data = moons(50_000, 0)

    def draw() -> tuple[Tensor, Tensor]:
        x0 = data[torch.randint(len(data), (BATCH,))]
        return x0, torch.randn_like(x0)

    return draw


@torch.no_grad()
def pairs(teacher: LatentDiffusionModel, count: int = 50_000) -> Draw:
    """Noise, and the points that a teacher makes of it."""
    noise, label = torch.randn(count, 2), torch.zeros(count, dtype=torch.long)
    x0 = heun(
        teacher.objective.denoiser(teacher.net, label), teacher.objective.path, noise, uniform_grid(LinearPath(), 30)
    )

    def draw() -> tuple[Tensor, Tensor]:
        index = torch.randint(count, (BATCH,))
        return x0[index], noise[index]

    return draw


def train(objective: Objective, steps: int, draw: Draw, start: Net | None = None) -> Net:
    """The network, from scratch or from another's weights."""
    torch.manual_seed(0)
    net = Net(objective.average)
    if start is not None:
        net.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student = MeanFlow(objective=objective, same=0.25) if objective.average else None
    y = torch.zeros(BATCH)
    for batch in range(steps):
        x0, eps = draw()
        eps = objective.coupling(x0, eps, y)
        if student is None:
            loss, _ = objective.loss(net, x0, y, eps=eps)
        else:
            loss, _ = student.loss(net, x0, y, drawn=student.times(BATCH, x0.device), eps=eps, batch=batch)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@dataclass
class Cost:
    """Of a training: steps, seconds, the network's evaluations, and the most bytes that live in a step, beside the
    weights."""

    steps: int
    seconds: float
    evaluations: int
    bytes: int

    def row(self, name: str, distance: float) -> str:
        """Of the table."""
        figures = f"{self.steps} | {self.seconds:.0f} | {self.evaluations:,} | {self.bytes / 2**20:.2f}"
        return f"| {name} | {figures} | {distance:.3f} |"


class Plane(nn.Module):
    """`Net` as a field of the plane alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t, Condition(torch.zeros(len(x), dtype=torch.long)))


def train_by_likelihood(steps: int) -> tuple[Net, Cost]:
    """The network as a continuous normalising flow (Chen et al. 2018), its gradients by the adjoint."""
    torch.manual_seed(0)
    net = Net()
    field, draw, evaluations, begun = Plane(net), independent(), 0, time.perf_counter()
    optimizer = torch.optim.Adam(field.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        nats, evaluated = negative_log_likelihood(field, draw()[0], adjoint=True, rtol=1e-3, atol=1e-3)
        optimizer.zero_grad()
        nats.mean().backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        evaluations += evaluated()
    seconds = time.perf_counter() - begun
    return net.eval(), Cost(steps, seconds, evaluations, memory_of_likelihood(field, adjoint=True))


def memory_of_likelihood(field: nn.Module, adjoint: bool) -> int:
    """The most bytes that live in a step by likelihood."""
    with Live(field.parameters()) as live:
        negative_log_likelihood(field, moons(BATCH, 3), adjoint=adjoint, rtol=1e-3, atol=1e-3)[0].mean().backward()
    return live.peak


def memory_of_regression(objective: Objective, net: Net) -> int:
    """The most bytes that live in a step of flow matching."""
    with Live(net.parameters()) as live:
        x0 = moons(BATCH, 3)
        objective.loss(net, x0, torch.zeros(BATCH), eps=torch.randn_like(x0))[0].mean().backward()
    return live.peak


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 64) -> float:
    """Mean W1 distance of two sets' projections on evenly spread directions."""
    angles = torch.arange(directions) * (torch.pi / directions)
    axes = torch.stack([angles.cos(), angles.sin()])
    return (((x @ axes).sort(0).values - (y @ axes).sort(0).values).abs()).mean().item()


def points(model: LatentDiffusionModel, sampler: Any, steps: int, count: int) -> tuple[Tensor, Tensor]:
    """Samples [count, 2], and the way of each from the noise, [steps + 1, count, 2]."""
    generator = model.generator(sampler=sampler, steps=steps, grid="uniform", seed=1)
    samples, record = generator.latents(range(count), torch.zeros(count, dtype=torch.long), keep=count)
    return samples, torch.stack([x_t for _, x_t, _ in record.states] + [samples])


@torch.no_grad()
def main(out: Path, steps: int = 6000, samples: int = 40_000, likelihood_steps: int = 300) -> None:
    """Train for so many steps, by likelihood for so many, measure so many samples, draw."""
    reference, pool = moons(samples, 1), moons(5 * samples, 2)
    floor = sliced_wasserstein(reference, pool[torch.randint(len(pool), (samples,))])  # drawn at random, as theirs are
    figure = Figure(figsize=(16, 6.6), layout="constrained")
    axes = figure.subplots(2, 4).flatten()
    table: dict[str, list[float]] = {}
    models: dict[str, LatentDiffusionModel] = {}
    costs: dict[str, Cost] = {}
    learned = objectives()
    learned["CNF, by likelihood"] = learned["flow"]  # walked alike: both are velocities
    for axis, (name, (objective, sampler)) in zip(axes, learned.items(), strict=False):
        draw = pairs(models["flow"]) if name == "reflow" else independent()
        start = models["flow"].net if name == "reflow" else None
        begun = time.perf_counter()
        with torch.enable_grad():
            if name == "CNF, by likelihood":
                net, costs[name] = train_by_likelihood(likelihood_steps)
            else:
                net = train(objective, steps, draw, start)  # type: ignore[arg-type]
            if name == "flow":
                seconds = time.perf_counter() - begun
                costs[name] = Cost(steps, seconds, steps, memory_of_regression(objective, net))
        model = models[name] = LatentDiffusionModel(
            net=net,
            objective=objective,
            stats=LatentStats(torch.zeros(1), torch.ones(1)),
            autoencoder=None,  # the plane is its own latent space
            latent_shape=(2,),
            class_names=["moons"],
        )
        table[name] = [sliced_wasserstein(points(model, sampler, n, samples)[0], reference) for n in NFES]
        walk = points(model, sampler, 1 if name in ("reflow", "MeanFlow") else 60, 120)[1]
        axis.plot(*walk.unbind(-1), color="tab:blue", alpha=0.25, linewidth=0.7)
        axis.plot(*walk[0].T, ".", color="0.6", markersize=2)
        axis.plot(*walk[-1].T, ".", color="black", markersize=3)
        by = ", one evaluation" if name in ("reflow", "MeanFlow") else ""
        axis.set(title=name + by, xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
        axes[6].loglog(NFES, table[name], marker="o", label=name)
    axes[6].axhline(floor, color="0.6", linestyle=":", label="data v data")
    axes[6].set(title="sliced Wasserstein distance", xlabel="network evaluations")
    axes[6].set_xticks(NFES, [str(n) for n in NFES])
    axes[7].axis("off")
    axes[7].legend(*axes[6].get_legend_handles_labels(), loc="center left")
    figure.savefig(out, dpi=80)
    print(f"| evaluations | {' | '.join(map(str, NFES))} |\n|---|{'---|' * len(NFES)}")
    for name, values in table.items():
        print(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} |")
    print("| training | steps | seconds | evaluations | MiB in a step | distance at 32 |\n|---|---|---|---|---|---|")
    for name, cost in costs.items():
        print(cost.row(name, table[name][-1]))
    with torch.enable_grad():
        direct = memory_of_likelihood(Plane(models["CNF, by likelihood"].net), adjoint=False)
    print(f"differentiating the solver's steps instead of the adjoint would take {direct / 2**20:.1f} MiB")
    print(f"data v data: {floor:.3f}; {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
