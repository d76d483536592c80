"""What makes a function a command: Hydra's composition, a run folder, and errors of one line."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.files import atomic_write

PACKAGED, CHECKOUT = Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf"
TRACE = "HYDRA_FULL_ERROR"
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)
CONFIG = "config.yaml"

RESUMES = dict.fromkeys(("train_autoencoder", "train_diffusion"), "; the same command goes on from the last checkpoint")
RESUMES["cache_latents"] = "; the same command goes on with the shards that are missing"

Task = Callable[[DictConfig, Path], None]


def command(task: Task) -> Callable[[], None]:
    """Turn task(config, run folder) of module ldm.NAME into a command configured by conf/NAME.yaml.

    A user's mistake ends in one line and exit status 1; HYDRA_FULL_ERROR=1 shows the stack trace.
    """
    name = Path(task.__code__.co_filename).stem
    show_trace = False

    def run(config: DictConfig) -> None:
        folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
        try:
            _check_owner(folder, name)
            task(config, folder)
        except USER_ERRORS as error:
            _remove_if_unused(folder)
            if show_trace or HydraConfig.get().mode is RunMode.MULTIRUN:  # where Hydra must know which point failed
                raise
            sys.exit(f"ldm: error: {one_line(error)}")

    conf = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    main = hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(run)

    def entry() -> None:
        nonlocal show_trace
        asked = os.environ.get(TRACE)
        show_trace = asked == "1"
        os.environ[TRACE] = "1"  # so that Hydra raises what it finds wrong instead of printing several lines
        try:
            main()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except USER_ERRORS as error:
            if show_trace:
                raise
            sys.exit(f"ldm: error: {one_line(error)}")
        except KeyboardInterrupt:
            sys.exit(f"ldm: interrupted{RESUMES.get(name, '')}")
        finally:
            if asked is None:
                del os.environ[TRACE]

    return entry


def _remove_if_unused(folder: Path) -> None:
    """Leave no folder behind that a refused command has but logged into."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"log.txt"}:
        shutil.rmtree(folder)


def one_line(error: BaseException) -> str:
    """The message of an exception, with that of what Hydra wrapped, on one line."""
    cause = error.__cause__
    if isinstance(error, HydraException | OmegaConfBaseException) and cause is not None:
        inner = one_line(cause)
        if isinstance(cause, USER_ERRORS) and not isinstance(cause, HydraException | OmegaConfBaseException):
            return inner  # raised by our own constructors, and clear without Hydra's frame
        return f"{' '.join(str(error).split())} ({inner})"
    return " ".join(str(error).split()) or type(error).__name__


def _check_owner(folder: Path, name: str) -> None:
    """Refuse a folder that another command made."""
    if (folder / CONFIG).exists():
        owner = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))["command"]  # type: ignore[index, call-overload]
        if owner != name:
            raise ValueError(f"{folder} belongs to ldm {owner}: choose another run=")


def write_config(config: DictConfig, folder: Path) -> None:
    """Write the resolved config into the run folder: once all checks have passed, so that a refusal changes nothing."""
    resolved = plain(config) | {"command": HydraConfig.get().job.config_name}
    with atomic_write(folder / CONFIG) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(resolved)).encode())


def whole(config: DictConfig, key: str) -> int:
    """A whole number of at least 1, also where it was written as 1e5."""
    value = config[key]
    if not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ValueError(f"{key}={value} must be a whole number of at least 1")
    return int(value)


def construct(target: Callable[..., Any], config: DictConfig | dict[str, Any], key: str) -> Any:
    """Call target with a config node's keys: an unknown or missing one is a user's error, of the node named `key`."""
    try:
        return target(**(config if isinstance(config, dict) else plain(config)))
    except TypeError as error:
        raise ValueError(f"{key}: {error}") from None


def build_loggers(config: DictConfig, folder: Path) -> list[Any]:
    """The loggers beside the CSV log. One with a null id gets an id that stays this run folder's own."""
    loggers = []
    for name, node in config.items():
        if "id" in node and node.id is None:
            file = folder / f"{name!s}-id.txt"
            if not file.exists():
                with atomic_write(file) as stream:
                    stream.write(secrets.token_hex(4).encode())
            OmegaConf.update(node, "id", file.read_text())
        loggers.append(build(node))
    return loggers


def plain(config: Any) -> Any:
    """A config as plain dicts and lists, interpolations resolved; a missing value is an error."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def build(config: Any) -> Any:
    """Instantiate a config node; lists and dicts come out plain."""
    return instantiate(config, _convert_="all")
