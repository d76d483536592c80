"""The console script: `ldm COMMAND [OVERRIDE ...]`, which is `python -m ldm COMMAND`. Imports nothing heavy."""

import os
import sys

from ldm import __version__

COMMANDS = {
    "train-autoencoder": "stage 1: train the autoencoder on images",
    "cache-latents": "encode images once, into latent shards",
    "train-diffusion": "stage 2: train the diffusion or flow U-Net on cached latents",
    "sample": "generate images: samples.npz, grid.png, trajectory.png",
    "evaluate": "score samples and reconstructions: metrics.json",
    "likelihood": "bits per dimension of latents and images: likelihood.json",
    "probe": "score an autoencoder by a small generator's Frechet distance",
    "summarize": "a sweep's points as a table and a picture",
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
            "ldm COMMAND --help     what it does, its groups and an example",
            "ldm COMMAND --cfg job  the config that it would run with",
        ]
    )


def main() -> None:
    """Run the command that sys.argv names.

    Packages of the user's own are found in the current folder, as `python -m` finds them, but after all others: a file
    there hides nothing that is installed.
    """
    sys.path.append(os.getcwd())
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        del sys.argv[1]
        if name == "evaluate" and sys.argv[1:2] == ["--compare"]:
            from ldm.commands.evaluate import compare

            compare(sys.argv[2:])
        else:
            from ldm.commands.entry import enter

            enter(name)
    else:
        sys.exit(f"ldm: error: no command {name!r}; there are {', '.join(COMMANDS)}")
