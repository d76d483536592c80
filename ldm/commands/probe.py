"""Score an autoencoder by what a small generator, of a fixed budget, makes of its latents."""

from pathlib import Path
from typing import Annotated

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ldm.commands.chain import call, check
from ldm.commands.config_files import word
from ldm.commands.options import Free, Group, build
from ldm.commands.train_autoencoder import StageOneOptions
from ldm.evaluation.result_files import MetricsFile


class Overrides(Group):
    """Of the commands that follow stage 1."""

    latents: list[str]
    diffusion: list[str]
    samples: list[str]
    metrics: list[str]


class ProbeOptions(StageOneOptions):
    """conf/probe.yaml, which says what each key means."""

    probe: Annotated[Overrides, Free()]


def main(options: ProbeOptions, run: Path) -> float:
    """The commands of the whole chain, each a process of its own with a run folder of its own."""
    data, chain = data_overrides(options), []
    here = {what: word(str(run / what)) for what in ("autoencoder", "latents", "diffusion", "samples")}
    everywhere = [f"seed={options.seed}", f"trust=[{','.join(options.trust)}]"]
    for name, folder, overrides in (
        ("train-autoencoder", "autoencoder", stage_one_overrides()),
        ("cache-latents", "latents", [f"autoencoder={here['autoencoder']}", *data, *options.probe.latents]),
        ("train-diffusion", "diffusion", [f"latents={here['latents']}", *options.probe.diffusion]),
        ("sample", "samples", [f"model={here['diffusion']}", *options.probe.samples]),
        ("evaluate", "metrics", [f"samples={here['samples']}", *data, *options.probe.metrics]),
    ):
        common = [f"hydra.run.dir={word(str(run / folder))}", *everywhere, *logger_overrides(options, run, folder)]
        chain.append((name, [*common, *overrides]))
    _ = build(options.data).class_names  # lists the files: what is not there is refused before the first command
    for name, overrides in chain:
        check(name, overrides, "probe")
    options.begin(run)
    for name, overrides in chain:
        call(name, overrides, "probe")
    distance = MetricsFile.read(run / "metrics" / "metrics.json").value("frechet_distance")
    assert distance is not None  # `ldm evaluate` has just computed it
    print(f"{run}: Frechet distance {distance:.4f} of the small generator's samples")
    return distance


def stage_one_overrides() -> list[str]:
    """This command's own overrides, but for those that stage 1 does not know or that all commands get."""
    of_probe = ("run=", "probe.", "sweep=", "launcher=", "seed=", "trust=", "logger")
    return [override for override in HydraConfig.get().overrides.task if not override.lstrip("+~").startswith(of_probe)]


def logger_overrides(options: ProbeOptions, run: Path, folder: str) -> list[str]:
    """The same loggers for every command; wandb's runs are named by the point, and grouped by the sweep."""
    names = list(options.logger)
    group = run.parent.name if HydraConfig.get().mode is RunMode.MULTIRUN else run.name
    named = [f"logger.wandb.group={word(group)}", f"logger.wandb.name={word(f'{run.name}/{folder}')}"]
    return [f"logger=[{','.join(names)}]", *(named if "wandb" in names else [])] if names else []


def data_overrides(options: ProbeOptions) -> list[str]:
    """The data of stage 1, for the other commands that read images; what has no place in a command line is left out."""
    values = {key: value for key, value in options.data.items() if key != "_target_"}
    given = (f"data.{key}={word(value)}" for key, value in values.items())
    return [f"data={HydraConfig.get().runtime.choices['data']}", *given]
