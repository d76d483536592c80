"""Commands that call others one after another, each a process of its own with a run folder of its own."""

import os
import subprocess
import sys
import time
from importlib import import_module
from typing import get_type_hints

from hydra import compose

from ldm.commands.entry import TRACE
from ldm.commands.error_lines import USER_ERRORS
from ldm.commands.hydra_errors import check_command_line, explain
from ldm.commands.next_step import WITHIN, own_configs
from ldm.runtime import stop


def check(name: str, overrides: list[str], within: str) -> None:
    """Refuse overrides that `ldm NAME` would refuse, before the commands that come first have trained for hours.

    Raises:
        ValueError: in the words of that command.
    """
    task = import_module(f"ldm.commands.{name.replace('-', '_')}").main
    try:
        check_command_line(name, overrides, within)
        get_type_hints(task)["options"].parse(compose(name.replace("-", "_"), overrides))
    except USER_ERRORS as error:
        raise ValueError(f"ldm {name}, which ldm {within} calls: {explain(error, name, overrides)}") from None


def call(name: str, overrides: list[str], within: str) -> None:
    """Run `ldm NAME OVERRIDES`, and pass signals on to it.

    Raises:
        ValueError: if it fails, after what it said itself.
        StoppedError: if a signal stopped it; what trains has saved, and requeued the job, if there is one.
    """
    environment = {key: value for key, value in os.environ.items() if key != TRACE} | {WITHIN: within}
    words = [sys.executable, "-m", "ldm", name, *own_configs(), *overrides]
    with subprocess.Popen(words, env=environment) as process:
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
