"""Score an autoencoder by what a small generator, of a fixed budget, makes of its latents."""

import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, get_type_hints

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ldm.commands.config_files import word
from ldm.commands.entry import TRACE
from ldm.commands.error_lines import USER_ERRORS
from ldm.commands.hydra_errors import explain
from ldm.commands.next_step import WITHIN
from ldm.commands.options import Free, Group, build
from ldm.commands.train_autoencoder import StageOneOptions
from ldm.evaluation.result_files import MetricsFile
from ldm.runtime import stop


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
        check(name, overrides)
    options.begin(run)
    for name, overrides in chain:
        call(name, *overrides)
    distance = MetricsFile.read(run / "metrics" / "metrics.json").value("frechet_distance")
    assert distance is not None  # `ldm evaluate` has just computed it
    print(f"{run}: Frechet distance {distance:.4f} of the small generator's samples")
    return distance


def check(name: str, overrides: list[str]) -> None:
    """Refuse overrides that `ldm NAME` would refuse, before the commands that come first have trained for hours.

    Raises:
        ValueError: in the words of that command.
    """
    task = import_module(f"ldm.commands.{name.replace('-', '_')}").main
    try:
        get_type_hints(task)["options"].parse(compose(name.replace("-", "_"), overrides))
    except USER_ERRORS as error:
        raise ValueError(f"ldm {name}, which the probe calls: {explain(error, name, overrides)}") from None


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


def call(name: str, *overrides: str) -> None:
    """Run `ldm NAME OVERRIDES`, and pass signals on to it.

    Raises:
        ValueError: if it fails, after what it said itself.
        StoppedError: if a signal stopped it; what trains has saved, and requeued the job, if there is one.
    """
    environment = {key: value for key, value in os.environ.items() if key != TRACE} | {WITHIN: "probe"}
    with subprocess.Popen([sys.executable, "-m", "ldm", name, *overrides], env=environment) as process:
        passed_on = False
        while process.poll() is None:
            if not passed_on and (signum := stop.asked()):
                process.send_signal(signum)
                passed_on = True
            time.sleep(0.2)
    if signum := stop.asked():
        stopped = stop.StoppedError(signum)
        stopped.outcome = f"ldm {name} has ended, too; the same command goes on from there"
        raise stopped
    if process.returncode != 0:
        raise ValueError(f"ldm {name} failed (above); the same command goes on from there")
