"""Commands in processes of their own, forked from one that has imported everything, so that none imports it again."""

import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from support.tiny import run_command

from ldm.commands import cache_latents, evaluate, sample, train_autoencoder, train_diffusion  # noqa: F401  for those forked


def start(
    folder: str | Path,
    name: str,
    options: Sequence[str],
    environment: dict[str, str] | None = None,
    first: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start `ldm NAME OPTIONS` in a folder.

    Args:
        environment  added to this process's
        first        called there before the command; a module's function, or a partial of one
    """
    return aside(_child, Path(folder).resolve(), name, options, environment or {}, first)


def aside(call: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start to call a module's function in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=call, args=arguments)
    process.start()
    return process


def _child(
    folder: Path, name: str, options: Sequence[str], environment: dict[str, str], first: Callable[[], None] | None
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if first is not None:
        first()
    run_command(name, *options)


def succeeds(*processes: "BaseProcess | Ranks") -> None:
    """Wait for processes, all of which must end well."""
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


class Ranks:
    """The processes of a run's ranks, as one process."""

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        self.processes = processes

    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def join(self, timeout: float | None = None) -> None:
        """Wait for each, at most as long."""
        for process in self.processes:
            process.join(timeout)

    def kill(self) -> None:
        """Kill one, by chance, and the others a little later, who wait for it or find it gone."""
        chosen = random.choice(self.processes)
        chosen.kill()
        time.sleep(random.uniform(0, 0.2))
        for process in self.processes:
            process.kill()

    @property
    def exitcode(self) -> int | None:
        return next((process.exitcode for process in self.processes if process.exitcode != 0), 0)


def ranks(name: str, *options: str, world: int = 2) -> None:
    """Run `torchrun --nproc-per-node WORLD -m ldm NAME OPTIONS` in the current folder, to its end."""
    succeeds(start_ranks(".", name, options, world))


def start_ranks(folder: str | Path, name: str, options: Sequence[str], world: int) -> Ranks:
    """Start it in a folder, without torchrun: it is its environment that makes a process a rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_RUN_ID": "none"}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
    return Ranks([start(folder, name, options, shared | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(world)])
