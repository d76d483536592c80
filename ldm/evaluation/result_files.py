"""The JSON files that commands leave beside their results."""

from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, JsonValue, model_validator

from ldm.card import not_plain
from ldm.runtime.ranges import Count, Natural, NonNegative
from ldm.runtime.schema import Fingerprint, JsonFile


class SampleStamp(JsonFile):
    """sample.json: what the images in samples.npz beside it depend on.

    sha256:      the first digits of that file's
    evaluations: of the denoiser, for each image; guided, each is of two networks
    """

    fix: ClassVar[str] = "sample again, or remove it, where only the images are wanted"

    sha256: Fingerprint
    model: Fingerprint
    model_path: str
    autoencoder: Fingerprint
    autoencoder_path: str
    num: Count
    class_names: list[str]
    classes: list[int | str] | int | str
    preprocessing: dict[str, Any] | None
    weights: Literal["ema", "raw"]
    path: dict[str, Any] | str
    sampler: dict[str, Any]
    grid: dict[str, Any] | str
    guidance: NonNegative
    guidance_interval: list[float]
    guidance_rescale: NonNegative
    weak: Fingerprint | None
    seed: Natural
    batches_trained: Natural
    evaluations: NonNegative
    precision: str


class MetricsFile(JsonFile):
    """metrics.json: each score with its value and what it depends on; what was scored, by which programs."""

    model_config = ConfigDict(extra="allow")
    fix: ClassVar[str] = "run `ldm evaluate` again"

    samples: dict[str, Any]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _is_plain(self) -> Self:
        wrong = not_plain(self.scores)
        if wrong is not None:
            raise ValueError(f"it holds {wrong}, and should be plain data")
        return self

    @property
    def scores(self) -> dict[str, Any]:
        """By name; packages of the user's own may add theirs."""
        return self.model_extra or {}

    def value(self, name: str) -> float | None:
        """The number that a score or a part of one has, by a name such as frechet_distance or redness/mean."""
        found: Any = self.scores
        for part in name.split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found = found.get("value")
        return float(found) if type(found) in (int, float) else None


class LikelihoodFile(JsonFile):
    """likelihood.json: bits per dimension of latents and of images, and what they depend on."""

    model_config = ConfigDict(extra="allow")
    fix: ClassVar[str] = "run `ldm likelihood` again"

    weights: Literal["ema", "raw"]
    __pydantic_extra__: dict[str, JsonValue]
