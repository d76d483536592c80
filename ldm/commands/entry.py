"""What makes a function a command: Hydra's composition, a run folder, and errors of one line."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ldm.commands.config_files import conf_folder
from ldm.commands.hydra_errors import MULTIRUN, check_command_line, explain, is_users
from ldm.commands.next_step import WITHIN
from ldm.commands.refusal import refusals_leave_nothing
from ldm.commands.run_folder import begin_log, check_owner, end_log, plain
from ldm.commands.sweep_points import PointCard, about_point, copy_of_point
from ldm.runtime import stop
from ldm.runtime.doing import doing
from ldm.runtime.lock import held
from ldm.runtime.run_copies import Mirror, bring_run

if TYPE_CHECKING:  # else `--help` would wait for torch
    from ldm.commands.options import Options

log = logging.getLogger(__name__)

TRACE = "HYDRA_FULL_ERROR"

TRAINS = ("train_autoencoder", "train_diffusion", "distill", "probe")  # they own the signals
RESUMES = dict.fromkeys(TRAINS, "; the same command goes on from the last checkpoint")
RESUMES["cache_latents"] = RESUMES["cache_pairs"] = "; the same command goes on with the shards that are missing"


def enter(command: str) -> None:
    """Run `ldm COMMAND` on what sys.argv holds after the command's name.

    A user's mistake ends in one line and exit status 1; HYDRA_FULL_ERROR=1 shows the stack trace.
    """
    name = command.replace("-", "_")
    if name in TRAINS and not MULTIRUN & set(sys.argv):  # the parent of a sweep just ends
        stop.listen()
    asked = os.environ.get(TRACE)
    os.environ[TRACE] = "1"  # so that Hydra raises what it finds wrong instead of printing several lines
    words = flags_first(sys.argv[1:])
    sys.argv[1:] = words
    try:
        check_command_line(command, words, os.environ.get(WITHIN))
        with refusals_leave_nothing():
            compose_and_run(command, show_trace=asked == "1")
    except Exception as error:
        if asked == "1" or not is_users(error):
            raise
        sys.exit(f"ldm: error: {explain(error, command, words)}")
    except KeyboardInterrupt:
        print(f"ldm: interrupted{RESUMES.get(name, '')}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        stop.unlisten()
        end_log()
        if asked is None:
            del os.environ[TRACE]


def flags_first(words: list[str]) -> list[str]:
    """The words with -m before all others: argparse takes overrides from one place alone, before or after it."""
    return [*(word for word in words if word in MULTIRUN), *(word for word in words if word not in MULTIRUN)]


def compose_and_run(command: str, show_trace: bool) -> None:
    """Have Hydra compose conf/NAME.yaml with the overrides, once or for each point of a sweep, and run each."""
    name = command.replace("-", "_")

    def run(config: DictConfig) -> float | None:
        if command not in sys.argv[1:2]:  # as it was: Lightning starts the other ranks by the same line
            sys.argv.insert(1, command)
        task: Task = import_module(f"ldm.commands.{name}").main
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return run_point(task, config, name)
        return run_alone(task, config, name, show_trace)

    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)(run)()


Task = Callable[[Any, Path], float | None]  # options, run folder


def run_alone(task: Task, config: DictConfig, name: str, show_trace: bool) -> float | None:
    """The command itself, outside a sweep."""
    folder = run_folder()
    try:
        return call(task, config, folder, name)
    except stop.StoppedError as stopped:
        end_after_stop(stopped)
        return None
    except Exception as error:  # here, before Hydra says that it was executing a job
        if show_trace or not is_users(error):
            raise
        sys.exit(f"ldm: error: {_explained(error, name)}")


def run_point(task: Task, config: DictConfig, name: str) -> float | None:
    """A point of a sweep, which notes how it went in point.json; one that is finished is not run again.

    What it returns is what the sweep optimises.
    """
    folder = run_folder()
    card = PointCard(folder, writes=_rank() == 0, copy=copy_of_point(config.get("store"), folder))
    try:
        check_owner(folder, name)
        begin_log()
        if not card.start(plain(config), about_point(name, HydraConfig.get())):
            log.info("%s is finished: skipped", folder)
            return card.value
        value = call(task, config, folder, name)
        card.finish(value)
        return value
    except stop.StoppedError as stopped:
        end_after_stop(stopped)
        return None
    except Exception as error:  # Hydra goes on with the others, and says at the end which failed
        said = _explained(error, name)
        log.error("%s failed: %s", folder, said)
        card.fail(said)
        raise
    finally:
        stop.unlisten()


def call(task: Task, config: DictConfig, folder: Path, name: str) -> float | None:
    """Call the task in its folder, on whichever rank this is."""
    if name in TRAINS:
        stop.listen()  # a launcher may have started this process without `enter`
    check_owner(folder, name)
    if _rank() > 0:  # rank 0 speaks for all
        logging.getLogger().setLevel(logging.ERROR)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    schema: type[Options] = get_type_hints(task)["options"]
    options = schema.parse(config)
    slot = options.slot(_rank())
    first = bool(slot) or _rank() == 0
    holds = held(folder, name.replace("_", "-"), slot) if first else nullcontext()
    with holds, copied(options, folder, name, first), doing(f"ldm {name.replace('_', '-')} was working in {folder}"):
        value = task(options, folder)
    begin_log()  # of a command that had nothing to do
    return value


def copied(options: "Options", folder: Path, name: str, first: bool) -> AbstractContextManager[Any]:
    """A run's folder with what its copy in an object store has; the first rank keeps that copy, or, of ranks with
    parts of their own, each does."""
    store = options.copy_of(folder)
    if store is None:
        return nullcontext()
    bring_run(store, folder, options.brings)
    check_owner(folder, name)
    return Mirror(store, folder) if first else nullcontext()


def _explained(error: BaseException, name: str) -> str:
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # a word may hold ${...}
    return explain(error, name.replace("_", "-"), words)


def run_folder() -> Path:
    """The run folder, relative to where the command was started."""
    return Path(os.path.relpath(HydraConfig.get().runtime.output_dir))


def end_after_stop(stopped: stop.StoppedError) -> None:
    """Say what the stop came to, let a launcher do its part, and end."""
    if stopped.outcome:
        print(f"ldm: {stopped}: {stopped.outcome}", file=sys.stderr)
    stop.hand_over(stopped.signum)
    sys.exit(128 + stopped.signum if stopped.outcome else 0)  # a failing rank has srun end rank 0, too


def _rank() -> int:
    from ldm.runtime.ranks import rank  # torch is not needed for --help

    return rank()
