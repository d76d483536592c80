"""Load a trained model in Python: generate images, and see what the autoencoder alone makes of them.

    python docs/examples/load_and_sample.py [RUN] [OUT.png]      by default runs/diffusion, as `make demo` leaves it

Draws three rows of ten: samples; the same, encoded and decoded again; a walk in the latent space from the first sample
to the second.
"""

import sys
from pathlib import Path

import torch

import ldm
from ldm.images import grid, save_png


def main(run: Path, out: Path) -> None:
    """Sample, reconstruct, interpolate; draw."""
    model = ldm.load(run)  # on the GPU, if there is one; both stages, checked against each other
    images = model.sample(n=10, seed=0)  # classes in turn; sampler, steps and guidance as the model was trained for
    print(f"images: {images.dtype} {list(images.shape)} of the classes {', '.join(model.class_names)}")

    latents = model.encode(images)  # normalised: about zero mean and unit variance
    print(f"latents: {list(latents.shape)}, mean {latents.mean():.2f}, standard deviation {latents.std():.2f}")
    reconstructed = model.decode(latents)

    share = torch.linspace(0, 1, 10, device=latents.device)[:, None, None, None]
    between = model.decode(torch.lerp(latents[:1], latents[1:2], share))

    save_png(out, grid(torch.cat([images, reconstructed, between]), 10))
    print(out)


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    main(*arguments, *[Path("runs/diffusion"), Path("load_and_sample.png")][len(arguments) :])
