"""ldm: train latent diffusion and flow-matching models; read `ldm/diffusion` first.

model = ldm.load("runs/flow", device="cuda")
images = model.sample(["cat", 5], n=8, sampler="heun", steps=25, guidance=2.0, seed=0)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.generate.autoencoding import AutoencoderModel
    from ldm.generate.model import LatentDiffusionModel

__version__ = "0.4.0"


def load(
    run: str | Path,
    *,
    device: str = "auto",
    weights: str | float = "ema",
    autoencoder: str | None = None,
    trust: Sequence[str] = (),
    text_encoder: str | None = None,
) -> "LatentDiffusionModel | AutoencoderModel":
    """A trained model, from a run folder or a checkpoint, in evaluation mode.

    run:          here or in an object store (s3://bucket/runs/flow);
                  of `ldm train-diffusion`: it samples, encodes and decodes; of `ldm train-autoencoder`: the latter two
    device:       "cpu", "cuda", "cuda:1", ...; "auto" is the GPU if there is one
    weights:      of stage 2: "ema", the average, or "raw", those of the last batch; or 0.1, an average of that width
                  which `ldm average` has made
    autoencoder:  stage 1, where it no longer lies at the place that stage 2 has recorded
    text_encoder: a folder or a hub's id, where it no longer lies at the place that the latents have recorded
    trust:        packages, beside ldm, whose code the model may be built from: it then runs

    Raises:
        ValueError: if there is no whole checkpoint, the autoencoder is not the one that the latents were made with, or
            the model is built from code of other packages.
    """
    from ldm.generate.loading import load_model  # here, so that `import ldm` costs nothing

    return load_model(
        run, device=device, weights=weights, autoencoder=autoencoder, trust=trust, text_encoder=text_encoder
    )
