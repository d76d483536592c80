"""diagnosis.json and diagnosis.png of `ldm diagnose`."""

from pathlib import Path
from typing import ClassVar

from ldm.runtime.files import atomic_write
from ldm.runtime.ranges import Count, NonNegative, Share
from ldm.runtime.schema import Fingerprint, JsonFile


class DiagnosisFile(JsonFile):
    """diagnosis.json: what latents are like, all of normalised ones.

    latents:            in the training split
    num:                how many the figures are of
    noise:              standard deviation of what was laid on them for noise_error
    power:              of the spectrum, at 0, 1, ... cycles a latent
    high_share:         share of the power beyond half of the highest frequency along an axis
    eigenvalues:        of the channels' covariance
    effective_channels: exponential of the entropy of their shares
    noise_error:        of pictures of noisy latents: root mean square, as a share of the pictures' standard deviation
    change_errors:      likewise, decoding a changed latent against changing the picture
    equivariance_error: their mean
    probe_accuracy:     of a logistic regression on latents; null: no labels, or nothing held out
    """

    fix: ClassVar[str] = "run `ldm diagnose` again"

    autoencoder: Fingerprint
    latents: Count
    shape: list[Count]
    num: Count
    noise: NonNegative
    power: list[NonNegative]
    high_share: Share
    eigenvalues: list[NonNegative]
    effective_channels: NonNegative
    noise_error: NonNegative
    change_errors: dict[str, NonNegative]
    equivariance_error: NonNegative
    probe_accuracy: Share | None

    def told(self, field: str) -> str:
        """A figure in a table."""
        value = getattr(self, field)
        return "none" if value is None else f"{value:.3f}"


def draw_diagnosis(path: Path, found: DiagnosisFile) -> None:
    """Spectrum in space, spectrum over channels, and the decoder's errors, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    space, channels, errors = figure.subplots(1, 3)
    space.semilogy(range(len(found.power)), found.power, marker="o")
    space.set(title="power by frequency", xlabel="cycles a latent", ylabel="mean square of normalised latents")
    channels.semilogy(range(1, len(found.eigenvalues) + 1), found.eigenvalues, marker="o")
    channels.set(
        title=f"channels: {found.effective_channels:.1f} of {len(found.eigenvalues)} in effect",
        xlabel="principal component", ylabel="variance",
    )  # fmt: skip
    bars = {f"noise {found.noise:g}": found.noise_error, **found.change_errors}
    errors.barh(list(bars), list(bars.values()))
    errors.invert_yaxis()
    errors.set(title="the decoder's errors", xlabel="share of the pictures' standard deviation")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
