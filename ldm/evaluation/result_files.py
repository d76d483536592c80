"""The JSON files that commands leave beside their results."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from ldm.card import StudentCard, not_plain
from ldm.runtime.files import flat
from ldm.runtime.ranges import Count, Natural, NonNegative
from ldm.runtime.schema import Fingerprint, Finite, JsonFile, WhichWeights
from ldm.runtime.wrong import shown

SAMPLES, STAMP = "samples.npz", "sample.json"
RECONSTRUCTION = ("psnr", "ssim", "lpips", "rfd")  # the scores of reconstructions


def which_weights(weights: str | float) -> str:
    """What files record of the option weights=."""
    return weights if isinstance(weights, str) else f"sigma_rel={weights:g}"


class SampleStamp(JsonFile):
    """sample.json: what the images in samples.npz beside it depend on.

    sha256:      the first digits of that file's
    evaluations: of the denoiser, for each image; guided, each is of two networks
    student:     of a few-step student, its method and its teacher
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
    weights: WhichWeights
    path: dict[str, Any] | str
    sampler: dict[str, Any]
    grid: dict[str, Any] | str
    guidance: NonNegative
    guidance_interval: list[float]
    guidance_rescale: NonNegative
    weak: Fingerprint | None
    seed: Natural
    latent_size: Count | list[Count] | None = None  # null: as in training
    start: dict[str, Any] | None = None  # null: noise
    prompts: list[str] | None = None  # in turn; null: none
    batches_trained: Natural
    student: StudentCard | None = None
    evaluations: NonNegative
    precision: str


def check_scores(scores: dict[str, Any], file: str) -> None:
    """Hold scores to what a file may say, before any of it is written.

    Raises:
        ValueError: naming the score, if it is not finite, or no number, text, list or group at all.
    """
    for name, value in flat(scores).items():
        wrong = not_plain(value)
        if wrong is None:
            continue
        if wrong.startswith("the number"):
            cause = "what it was computed of is not finite, or too little; look at the images, or leave this score out"
        else:
            cause = "a score is of plain numbers, texts, lists and dicts: return float(...), say"
        raise ValueError(f"{name} is {wrong.removeprefix('the number ')}, so {file} is not written: {cause}")


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
        for name, score in self.scores.items():
            if not isinstance(score, dict):
                raise ValueError(f"{name} is {shown(score)[:80]}, not a group of keys")
            for key in ("value", *RECONSTRUCTION) if name == "reconstruction" else ("value",):
                if type(score.get(key, 0)) not in (int, float):
                    raise ValueError(f"{name}.{key} is {shown(score[key])[:80]}, not a number")
            for key in ("depends", "of"):
                if type(score.get(key, {})) is not dict:
                    raise ValueError(f"{name}.{key} is {shown(score[key])[:80]}, not a group of keys")
        return self

    @property
    def scores(self) -> dict[str, Any]:
        """By name; packages of the user's own may add theirs."""
        return self.model_extra or {}

    def value(self, name: str) -> float | None:
        """The number that a score or a part of one has, by a name such as frechet_distance or redness/mean."""
        score: Any = self.scores
        for part in name.split("/"):
            score = score.get(part) if isinstance(score, dict) else None
        if isinstance(score, dict):
            score = score.get("value")
        return float(score) if type(score) in (int, float) else None


class ReconstructionFile(JsonFile):
    """reconstructions.json of `ldm reconstruct`.

    psnr: in dB, by the pictures' names
    """

    fix: ClassVar[str] = "run `ldm reconstruct` again"

    autoencoder: Fingerprint
    resolution: Count
    psnr: Annotated[dict[str, Finite], Field(min_length=1)]
    mean_psnr: Finite


class DrawsFile(JsonFile):
    """What the draws of some pictures depend on, whatever they were told.

    draws: of each picture
    """

    model: Fingerprint
    autoencoder: Fingerprint
    weights: WhichWeights
    sampler: dict[str, Any]
    grid: dict[str, Any] | str
    guidance: NonNegative
    seed: Natural
    pictures: Count
    draws: Count
    precision: str


class InfillFile(DrawsFile):
    """infill.json of `ldm infill`; resample: of method=repaint."""

    fix: ClassVar[str] = "run `ldm infill` again"

    method: str
    resample: Count | None


class UpscaleFile(DrawsFile):
    """upscale.json of `ldm upscale`.

    noise: level of what was laid on the small pictures
    psnr:  where they were shrunk from large ones, mean PSNR against these in dB, of each way to enlarge them
    """

    fix: ClassVar[str] = "run `ldm upscale` again"

    factor: Count
    noise: NonNegative
    psnr: dict[str, Finite]


class LikelihoodFile(JsonFile):
    """likelihood.json: bits per dimension of latents and of images, and what they depend on."""

    model_config = ConfigDict(extra="allow")
    fix: ClassVar[str] = "run `ldm likelihood` again"

    weights: WhichWeights
    __pydantic_extra__: dict[str, JsonValue]
