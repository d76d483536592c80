"""The console script: `ldm COMMAND [OVERRIDE ...]`, which is `python -m ldm COMMAND`. Imports nothing heavy."""

import difflib
import io
import os
import sys

from ldm import __version__

COMMANDS = {
    "train-autoencoder": "stage 1: train the autoencoder on images",
    "cache-latents": "encode images once, into latent shards",
    "diagnose": "whether latents will diffuse well: spectra, equivariance, linear probe",
    "train-diffusion": "stage 2: train the diffusion or flow U-Net on cached latents",
    "cache-pairs": "a teacher's samples and their noise, for objective=reflow",
    "distill": "students that sample in fewer steps, each taught by the one before",
    "average": "averages of any width of a run's weights, and which is best",
    "sample": "generate images: samples.npz, grid.png, trajectory.png",
    "infill": "make hidden parts of pictures anew, so that they fit what is known",
    "upscale": "make pictures of more pixels from small ones",
    "reconstruct": "pictures beside what an autoencoder makes of them",
    "playground": "a page in the browser to play with a model",
    "evaluate": "score samples and reconstructions: metrics.json",
    "likelihood": "bits per dimension of latents and images: likelihood.json",
    "probe": "score an autoencoder by a small generator's Frechet distance",
    "summarize": "a sweep's points as a table and a picture",
    "estimate": "what another command would cost: memory, hours, disk; whether it fits",
    "report": "one page of a run and all that it was made from: report.html",
    "convert": "import and export models: CompVis, Stable Diffusion, diffusers",
    "pack": "turn any source of images into webdataset shards",
}


def usage() -> str:
    lines = [f"  {name:18} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"ldm {__version__}: latent diffusion and flow matching",
            "",
            "usage: ldm COMMAND [GROUP=CHOICE] [KEY=VALUE] [-m]    (overrides and sweeps are Hydra's)",
            "",
            *lines,
            "",
            "ldm COMMAND --help             its groups and keys, each with its comment, and an example",
            "ldm COMMAND --cfg job          the config that it would run with",
            'eval "$(ldm --completion bash)"  completes commands, groups, choices and keys (or zsh, fish)',
        ]
    )


def main() -> None:
    """Run the command that sys.argv names, until whoever reads what it prints, as `| head`, has seen enough.

    Packages of the user's own are found in the current folder, as `python -m` finds them, but after all others: a file
    there hides nothing that is installed.
    """
    sys.path.append(os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters that a name has
            stream.reconfigure(errors="backslashreplace")
    try:
        dispatch()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch() -> None:
    """Answer what sys.argv asks for."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(__version__)
    elif name in ("--completion", "--complete"):
        complete(name, " ".join(words))
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f": did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
        sys.exit(f"ldm: error: no command {name}{meant}")
    elif {"-h", "--help"} & set(words):
        from ldm.commands.help import help_text

        print(help_text(name, words))
    else:
        run(name, words)


def complete(flag: str, given: str) -> None:
    """`ldm --completion SHELL` prints a shell's script, which calls `ldm --complete LINE`."""
    from ldm.commands import completion

    if flag == "--complete":
        print("\n".join(completion.candidates(given, list(COMMANDS))))
        return
    try:
        print(completion.script(given), end="")
    except ValueError as error:
        sys.exit(f"ldm: error: {error}")


def run(name: str, words: list[str]) -> None:
    """Run a command, whose own words alone are left in sys.argv."""
    del sys.argv[1]
    if name == "evaluate" and words[:1] == ["--compare"]:
        from ldm.commands.evaluate import compare

        compare(words[1:])
    elif name == "estimate":
        from ldm.commands.estimate import estimate

        estimate(words)
    elif name == "report":  # it makes no run
        from ldm.commands.report import report

        report(words)
    else:
        from ldm.commands.entry import enter

        enter(name)
