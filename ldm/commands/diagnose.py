"""What latents are like before anything is trained on them: diagnosis.json, diagnosis.png and a table."""

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ldm.checkpoint import matching_autoencoder
from ldm.commands.options import Free, ResultOptions, Text
from ldm.data.cache_reader import LatentCache
from ldm.data.shard_writer import AUTOENCODER_FILE
from ldm.evaluation.diagnosis import DiagnosisFile, draw_diagnosis
from ldm.latents import sample_moments
from ldm.metrics.diffusability import (
    CHANGES,
    Decode,
    change_error,
    channel_spectrum,
    effective_channels,
    high_share,
    linear_probe,
    noise_error,
    power_spectrum,
)
from ldm.runtime.ranges import Count, NonNegative
from ldm.runtime.ranks import pick_device

DECODED = 256  # latents at most of which the decoder is asked
COLUMNS = {  # of the table: a field of the file, and what it is
    "high_share": "power at high frequencies",
    "effective_channels": "effective channels",
    "noise_error": "error by noise",
    "probe_accuracy": "linear probe, accuracy",
    "equivariance_error": "error by changes, mean",
}


class DiagnoseOptions(ResultOptions):
    """conf/diagnose.yaml, which says what each key means."""

    latents: Text
    autoencoder: Text | None
    num: Count
    noise: NonNegative
    batch_size: Annotated[Count, Free()]
    device: Annotated[str, Free()]


def main(options: DiagnoseOptions, run: Path) -> None:
    cache = LatentCache(options.latents, "once")
    if cache.codes is not None:
        raise ValueError(f"latents={options.latents} are codes, which have no spectrum: cache latents by codes=false")
    loaded = matching_autoencoder(options.autoencoder, AUTOENCODER_FILE, cache.folder, cache.autoencoder)
    model, device = loaded.model, pick_device(options.device)
    model.to(device)
    options.keep_others(run)

    def decode(latents: Tensor) -> Tensor:
        parts = latents.split(options.batch_size)
        return torch.cat([model.decode(cache.stats.denormalize(part.to(device))).cpu() for part in parts])

    with torch.inference_mode():
        found = diagnosis(cache, decode, options)
    options.begin(run)
    found.write(run / "diagnosis.json")
    draw_diagnosis(run / "diagnosis.png", found)
    for field, words in COLUMNS.items():
        print(f"{words:30} {found.told(field)}")
    for name, value in found.change_errors.items():
        print(f"{'  ' + name:30} {value:.3f}")
    print(f"spectra and all figures in {run}: diagnosis.png, diagnosis.json")


def diagnosis(cache: LatentCache, decode: Decode, options: DiagnoseOptions) -> DiagnosisFile:
    """All figures of a cache, whose latents `decode` decodes."""
    generator = torch.Generator().manual_seed(options.seed)

    def drawn(split: str, num: int) -> tuple[Tensor, Tensor]:
        latents = cache.few("val" if split == "val" else "train")
        chosen = torch.randperm(len(latents), generator=generator)[:num].tolist()
        batch = latents.__getitems__([(0, index) for index in chosen])
        eps = torch.randn(len(chosen), *cache.latent_shape, generator=generator)
        return cache.stats.normalize(sample_moments(batch.moments, eps)), batch.labels

    z, labels = drawn("train", options.num)
    power = power_spectrum(z)
    eigenvalues = channel_spectrum(z)
    few = z[:DECODED]
    noisy = few + options.noise * torch.randn(few.shape, generator=generator)
    changes = {name: _relative(change_error(decode, few, change)) for name, change in CHANGES.items()}
    probe = None
    if cache.manifest.count.val > 0 and len(labels.unique()) > 1:
        probe = linear_probe(z, labels, *drawn("val", -(-options.num // 2)))
    return DiagnosisFile(
        autoencoder=cache.autoencoder,
        latents=cache.manifest.count.train,
        shape=list(cache.latent_shape),
        num=len(z),
        noise=options.noise,
        power=power.tolist(),
        high_share=high_share(power, max(z.shape[-2:])),
        eigenvalues=eigenvalues.tolist(),
        effective_channels=effective_channels(eigenvalues),
        noise_error=_relative(noise_error(decode, few, noisy)),
        change_errors=changes,
        equivariance_error=sum(changes.values()) / len(changes),
        probe_accuracy=probe,
    )


def _relative(sums: Tensor) -> float:
    """A root mean square error as a share of the pictures' standard deviation."""
    return float((sums[0] / sums[1].clamp(min=1e-30)).sqrt())
