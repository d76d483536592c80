"""Signals at a chosen moment in this process, and kills of another at random ones."""

import random
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from support.processes import Ranks, succeeds

from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.diffusion_module import DiffusionModule


def hook(patch: pytest.MonkeyPatch, cls: type, name: str, when: Callable[[Any], bool], do: Callable[[], None]) -> None:
    """Have cls.name call do() where when(self) says so."""
    method = getattr(cls, name)

    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self):
            do()
        return method(self, *args, **kwargs)

    patch.setattr(cls, name, hooked)


def note_batches(file: Path) -> None:
    """Have both stages' modules write into a file what each batch was made of."""
    for module_class in (AutoencoderModule, DiffusionModule):
        _note_batches(module_class, file)


def _note_batches(module_class: Any, file: Path) -> None:
    step = module_class.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        with open(file, "a") as stream:
            crc = zlib.crc32(batch[0].numpy().tobytes() + batch[1].numpy().tobytes())
            stream.write(f"{self.batches_seen} {crc}\n")
        return step(self, batch, batch_idx)

    module_class.training_step = training_step


def killed_often(
    begin: Callable[[], BaseProcess | Ranks],
    progress: Callable[[], int],
    again: Callable[[], None],
    kills: int,
    most: int,
) -> Iterator[None]:
    """Start a command, kill it at a random moment, yield, so that what it left can be checked, and so on; let it end.

    The moments follow the work, not the clock, so that on no machine all of them lie in the start or after the end.

    Args:
        begin     starts the process
        progress  how much the command has done so far: a count that rises
        again     called where the work was done before the last kill: sees to it that there is more
        kills     how often it is killed
        most      of the progress between two kills
    """
    random_numbers = random.Random(0)
    while kills:
        process = begin()
        goal = progress() + random_numbers.randrange(most)
        while process.is_alive() and progress() < goal:
            process.join(0.01)
        process.join(random_numbers.uniform(0, 0.2))
        if process.is_alive():
            process.kill()
            process.join()
            kills -= 1
            yield
        else:
            assert process.exitcode == 0
            again()
    succeeds(begin())
