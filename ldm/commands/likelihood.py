"""Bits per dimension of held-out latents, and the bound on those of their images, given labels: likelihood.json."""

from pathlib import Path
from typing import Annotated, Any

from ldm.commands.options import Free, ResultOptions, Text, Weights, build
from ldm.data.sources import Source
from ldm.diffusion.log_likelihood import log_likelihood
from ldm.evaluation.bits_per_dim import BitsPerDim
from ldm.evaluation.result_files import LikelihoodFile, check_scores, which_weights
from ldm.generate.loading import load_stages
from ldm.runtime.arguments import Node, arguments_of
from ldm.runtime.ranges import Count
from ldm.runtime.ranks import pick_device


class LikelihoodOptions(ResultOptions):
    """conf/likelihood.yaml, which says what each key means."""

    data: Node
    model: Text
    autoencoder: Text | None
    weights: Weights
    num: Count
    batch_size: Count
    likelihood: Annotated[dict[str, Any], arguments_of(log_likelihood, "denoise", "path", "x0")]
    device: Annotated[str, Free()]


def main(options: LikelihoodOptions, run: Path) -> None:
    device = pick_device(options.device)
    model, autoencoder = load_stages(options.model, options.weights, options.autoencoder, options.trust)
    source: Source = build(options.data)
    bits = BitsPerDim(
        model=model,
        autoencoder=autoencoder,
        source=source,
        num=options.num,
        seed=options.seed,
        options=options.likelihood,
    )
    options.keep_others(run)
    result = bits.measure(options.batch_size, device)
    check_scores(result, "likelihood.json")
    options.begin(run)
    LikelihoodFile(weights=which_weights(options.weights), **result).write(run / "likelihood.json")
    print(f"{'codes' if bits.of_codes else 'latents'}: {result['latent_bits_per_dim']:.4f} bits/dim")
    print(f"images: at most {result['image_bits_per_dim_at_most']:.4f} bits/dim; terms in {run}/likelihood.json")
