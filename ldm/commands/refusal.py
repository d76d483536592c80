"""The run folder before a command begins: a command that is refused leaves nothing behind that was not there.

Hydra makes the folder, and may write into it, before any check of ours. So what was there is noted when Hydra starts,
the log waits in memory until the command begins (its config.yaml is written), and a refusal takes the rest away.
"""

import copy
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ldm.commands.error_lines import USER_ERRORS
from ldm.commands.hydra_errors import could_not_launch
from ldm.commands.sweep_points import POINT
from ldm.runtime.files import CONFIG


@dataclass(frozen=True)
class Before:
    """What a folder was when the command started.

    Args:
        folder: a command's run folder, or a sweep's.
        of_sweep: which of the two.
        absent: the folder and those around it that were not there, the innermost first.
        names: what it held.
    """

    folder: Path
    of_sweep: bool
    absent: list[Path]
    names: frozenset[str]

    @classmethod
    def of(cls, folder: Path, of_sweep: bool) -> "Before":
        absent = [path for path in (folder, *folder.parents) if not path.exists()]
        names = frozenset() if absent else frozenset(path.name for path in folder.iterdir())
        return cls(folder, of_sweep, absent, names)

    def restore(self) -> None:
        """Remove what is new, unless a command has begun here."""
        if (self.folder / CONFIG).exists() or not self.folder.is_dir():
            return
        if any(self.folder.glob(".lock*")):  # another command's, which works here
            return
        new = [path for path in self.folder.iterdir() if path.name not in self.names]
        if any((path / begun).exists() for path in new for begun in (CONFIG, POINT)):
            return
        for path in new:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in self.absent:
            if any(path.iterdir()):  # another command's by now
                return
            path.rmdir()


@cache
def scratch_folder() -> str:
    """A run folder for a command that has none, which goes when the command ends: see `Before`."""
    return str(Path(tempfile.gettempdir(), f"ldm-{secrets.token_hex(8)}"))


# at import, as `ldm.point` is: Hydra resolves hydra.run.dir before it calls any function of ours
OmegaConf.register_new_resolver("ldm.scratch", scratch_folder, replace=True)

_noted: list[Before] = []  # by Hydra's callback; at most one


def know_the_command(config: DictConfig) -> None:
    """Set what ${hydra:...} reads, as Hydra does later: run= may ask for the command's name. Of a copy, since Hydra
    makes it read-only."""
    HydraConfig.instance().set_config(copy.deepcopy(config))


class NoteFolder(Callback):
    """Notes what is there before Hydra makes the run folder, or the sweep's."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        know_the_command(config)
        _noted[:] = [Before.of(Path(config.hydra.run.dir), of_sweep=False)]

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        know_the_command(config)
        _noted[:] = [Before.of(Path(config.hydra.sweep.dir), of_sweep=True)]


@contextmanager
def refusals_leave_nothing() -> Iterator[None]:
    """Whatever ends the block before the command has begun, what it left in its folder is taken away.

    A sweep that is interrupted leaves what its launcher has written, for which jobs may wait. Of several ranks, the
    first alone cleans up.
    """
    _noted.clear()
    try:
        yield
    except BaseException as error:
        refused = isinstance(error, USER_ERRORS) or could_not_launch(error)
        succeeded = isinstance(error, SystemExit) and not error.code
        first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
        if _noted and first and (refused if _noted[0].of_sweep else not succeeded):
            _noted[0].restore()
        raise
