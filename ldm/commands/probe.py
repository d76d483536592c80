"""Score an autoencoder by what a small generator, of a fixed budget, makes of its latents."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ldm.commands.entry import TRACE
from ldm.commands.options import Free, Group
from ldm.commands.train_autoencoder import StageOneOptions
from ldm.runtime import stop
from ldm.runtime.files import read_json


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
    data = data_overrides(options)
    here = {what: f"'{run / what}'" for what in ("autoencoder", "latents", "diffusion", "samples")}
    options.begin(run)
    chain = {
        ("train-autoencoder", "autoencoder"): stage_one_overrides(),
        ("cache-latents", "latents"): [f"autoencoder={here['autoencoder']}", *data, *options.probe.latents],
        ("train-diffusion", "diffusion"): [f"latents={here['latents']}", *options.probe.diffusion],
        ("sample", "samples"): [f"model={here['diffusion']}", *options.probe.samples],
        ("evaluate", "metrics"): [f"samples={here['samples']}", *data, *options.probe.metrics],
    }
    everywhere = [f"seed={options.seed}", f"trust=[{','.join(options.trust)}]"]
    for (name, folder), overrides in chain.items():
        common = [f"hydra.run.dir='{run / folder}'", *everywhere, *logger_overrides(options, run, folder)]
        call(name, *common, *overrides)
    distance = read_json(run / "metrics" / "metrics.json")["frechet_distance"]["value"]
    print(f"{run}: Frechet distance {distance:.4f} of the small generator's samples")
    return distance


def stage_one_overrides() -> list[str]:
    """This command's own overrides, but for those that stage 1 does not know or that all commands get."""
    ours = ("run=", "probe.", "sweep=", "launcher=", "seed=", "trust=", "logger")
    return [override for override in HydraConfig.get().overrides.task if not override.lstrip("+~").startswith(ours)]


def logger_overrides(options: ProbeOptions, run: Path, folder: str) -> list[str]:
    """The same loggers for every command; wandb's runs are named by the point, and grouped by the sweep."""
    names = list(options.logger)
    group = run.parent.name if HydraConfig.get().mode is RunMode.MULTIRUN else run.name
    wandb = [f"logger.wandb.group='{group}'", f"logger.wandb.name='{run.name}/{folder}'"] if "wandb" in names else []
    return [f"logger=[{','.join(names)}]", *wandb] if names else []


def data_overrides(options: ProbeOptions) -> list[str]:
    """The data of stage 1, for the other commands that read images; what has no place in a command line is left out."""
    values = {key: value for key, value in options.data.items() if key != "_target_"}
    quoted = {key: f"'{value}'" if isinstance(value, str) else value for key, value in values.items()}
    words = {key: "null" if value is None else value for key, value in quoted.items()}
    return [f"data={HydraConfig.get().runtime.choices['data']}", *(f"data.{key}={word}" for key, word in words.items())]


def call(name: str, *overrides: str) -> None:
    """Run `ldm NAME OVERRIDES`, and pass signals on to it.

    Raises:
        ValueError: if it fails, after what it said itself.
        StoppedError: if a signal stopped it; what trains has saved, and requeued the job, if there is one.
    """
    environment = {key: value for key, value in os.environ.items() if key != TRACE}
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
