"""Halve a teacher's steps again and again: a student for each number of steps, taught by the one before."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ldm.checkpoint import load_diffusion
from ldm.commands.chain import call, check
from ldm.commands.config_files import word
from ldm.commands.next_step import say_next
from ldm.commands.options import Free, LoggedOptions, Text
from ldm.commands.students import check_guided, check_latents
from ldm.data.cache_reader import LatentCache
from ldm.runtime.ranges import Count, NonNegative


class DistillOptions(LoggedOptions):
    """conf/distill.yaml, which says what each key means."""

    teacher: Text
    latents: Annotated[Text, Free()]
    steps: Annotated[list[Count], Field(min_length=1)]
    guidance: NonNegative
    guidance_max: NonNegative | None
    train: Annotated[list[str], Free()]

    @model_validator(mode="after")
    def _halves(self) -> Self:
        for before, after in pairwise(self.steps):
            if before != 2 * after:
                raise ValueError(f"steps={self.steps}: {after} is not half of {before}, and each student halves")
        return self


def main(options: DistillOptions, run: Path) -> None:
    card = load_diffusion(options.teacher, trust=options.trust).card
    check_guided(options.teacher, card, options.guidance, options.guidance_max, "guidance")
    check_latents(f"teacher={options.teacher}", card, options.latents, LatentCache(options.latents, "size"))
    chain, teacher, guidance = [], options.named("teacher"), guides(options)
    for steps in options.steps:
        chain.append([*overrides(options, run / str(steps)), f"teacher={word(teacher)}", *guidance, *options.train])
        chain[-1] += [f"objective.student.steps={steps}"]
        teacher = str(run / str(steps))
        if options.guidance_max is None:  # it has learned its guidance
            guidance = ["objective.student.guidance=1"]
    for words in chain:
        check("train-diffusion", words, "distill")
    options.begin(run)
    for words in chain:
        call("train-diffusion", words, "distill")
    print(f"students of {', '.join(map(str, options.steps))} steps in {run}")
    say_next("sample", f"model={teacher}")


def overrides(options: DistillOptions, folder: Path) -> list[str]:
    """What `ldm train-diffusion` is told for each student."""
    everywhere = [
        f"seed={options.seed}",
        f"trust=[{','.join(options.trust)}]",
        f"latents={word(options.named('latents'))}",
    ]
    loggers = [f"logger=[{','.join(options.logger)}]"] if options.logger else []
    return [f"hydra.run.dir={word(str(folder))}", *everywhere, *loggers, "objective=progressive", "net=teacher"]


def guides(options: DistillOptions) -> list[str]:
    """The guidance that a student learns from its teacher."""
    most = options.guidance_max
    said = [f"objective.student.guidance={options.guidance:g}"]
    return said + ([f"objective.student.guidance_max={most:g}"] if most is not None else [])
