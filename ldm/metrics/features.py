"""Feature extractors and classifiers: modules that map images, uint8 [B, 3, H, W], to features or logits."""

import logging
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.runtime.files import sha256

log = logging.getLogger(__name__)

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class Extractor(nn.Module):
    """A network from images, uint8 [B, 3, H, W], to features, [B, num_features].

    identity:      which weights it has
    resize:        how images are brought to the size that it takes
    num_features:  D
    kinds:         of features that Frechet distances are taken of
    """

    identity: str
    resize: str
    num_features: int
    kinds: tuple[str, ...] = ("features",)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """All that it computes of a batch: "features", and perhaps "spatial" features and the "logits" of classes."""
        return {"features": self(image)}


class Pixels(Extractor):
    """Grey values at 8 x 8. These features need no weights, and tell enough of the digits, but of nothing else."""

    identity, resize, num_features = "grey 8x8 pixels", "mean over areas, to 8x8", 64

    def forward(self, image: Tensor) -> Tensor:
        grey = image.float().mean(dim=1, keepdim=True) / 255
        return F.adaptive_avg_pool2d(grey, 8).flatten(1)


class Inception(Extractor):
    """The FID network as converted by torch-fidelity: pooled features (FID, KID), 7 channels of the 17 x 17 map that
    ADM's sFID takes (Nash et al. 2021), and ImageNet's logits (Inception score).

    Args:
        weights: a file; None = downloaded once

    Raises:
        ValueError: if it can't be downloaded, with the file's address and where it belongs; or if it is damaged.
    """

    kinds = ("features", "spatial")
    num_features, resize = 2048, "TensorFlow's bilinear, not antialiased, to 299x299"

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        try:
            self.net = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=None if weights is None else str(weights),
            )
        except OSError as error:
            raise ValueError(
                f"features=inception needs {INCEPTION_URL}, and the download failed ({error}): put the file at {path}"
            ) from None
        except Exception as error:  # torch's reader raises whatever a damaged file leads it to
            raise ValueError(f"{path} is damaged, not Inception's weights ({_told(error)}): remove it") from None
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self.identity = f"torch-fidelity inception-v3-compat 2048, sha256 {sha256(path)[:16]}"

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.spatial = output[:, :7]  # [B, 7, 17, 17]

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)[0]

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features, logits = self.net(image)
        return {"features": features, "spatial": self.spatial.permute(0, 2, 3, 1).flatten(1), "logits": logits}


class FromFile(Extractor):
    """A TorchScript (.pt) or torch.export (.pt2) file that maps uint8 [B, 3, H, W] to [B, D].

    Such a file is a program, which runs here with all that this user may do: load only files that you trust.

    Args:
        path:    the file
        example: a few of the images
        key:     of the configuration, for messages

    Raises:
        ValueError: if the file is missing, is neither kind, or does not keep that contract on these images.
    """

    resize = "as the file does it"
    asked: ClassVar[dict[str, bool]] = {"return_features": True}  # of a file whose function has such arguments
    dims, shape = 2, "a tensor of two dimensions, a row an image"

    def __init__(self, path: Path, example: Tensor, key: str = "features") -> None:
        super().__init__()
        if not path.is_file():
            problem = "is no regular file" if path.exists() else "does not exist"
            raise ValueError(f"{key}={path} {problem}: name a TorchScript .pt or a torch.export .pt2 file")
        log.info("%s=%s runs the code in %s: load only files that you trust", key, path, path.name)
        try:
            loaded = torch.export.load(path).module() if path.suffix == ".pt2" else _load_torchscript(path)
            self.options = _options_for(loaded, self.asked)
            output = loaded(example, **self.options)
            if isinstance(output, Tensor) and output.dim() == self.dims:
                loaded(example.repeat(2, 1, 1, 1), **self.options)  # an export may have one batch size
                finite = bool(output.isfinite().all())
        except Exception as error:  # torch's readers, and the file's own code, raise whatever they like
            raise ValueError(
                f"{key}={path} can't be used on {list(example.shape)} uint8 images: {_told(error)}"
            ) from None
        if not isinstance(output, Tensor) or output.dim() != self.dims or len(output) != len(example):
            what = f"the shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"{key}={path} returns {what}, not {self.shape}")
        if not finite:
            raise ValueError(f"{key}={path} returns values that are not finite: it is damaged, or not for such images")
        self.num_features, self.size = output.shape[1], tuple(output.shape[2:])
        self.identity = f"{path.name}, sha256 {sha256(path)[:16]}"
        self.module = loaded

    def train(self, mode: bool = True) -> "FromFile":  # noqa: ARG002
        """Change nothing: exported modules have one mode only, and raise an error when they are given another."""
        return self

    def forward(self, image: Tensor) -> Tensor:
        return self.module(image, **self.options)


def _told(error: Exception) -> str:
    """What an exception says in the end."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


class LogitsFromFile(FromFile):
    """Such a file's logits, [B, K]."""

    asked: ClassVar[dict[str, bool]] = {"return_features": False}


class DenseFromFile(FromFile):
    """Such a file's features of places, [B, D, h, w]."""

    asked: ClassVar[dict[str, bool]] = {"spatial": True}
    dims, shape = 4, "a tensor [B, D, h, w], a map of features an image"


def _options_for(loaded: nn.Module, asked: dict[str, bool]) -> dict[str, bool]:
    """Those of the arguments that a file's function has: `return_features`, whose default is true in some files and
    false in others (NVIDIA's Inception), and `spatial`."""
    schema = getattr(loaded.forward, "schema", None)  # TorchScript's; exported programs take images alone
    names = [] if schema is None else [argument.name for argument in schema.arguments]
    return {name: value for name, value in asked.items() if name in names}


def _load_torchscript(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # the warning is for those who write such files; published feature networks are in this form
        warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated.*", category=FutureWarning)
        return torch.jit.load(path, map_location="cpu").eval()


def features_for(name: str | None, digits: bool) -> str | None:
    """The features= that "auto" stands for: pixels for the digits, inception for all else.

    Raises:
        ValueError: for pixels of anything but the digits, of which they tell nothing.
    """
    if name == "pixels" and not digits:
        raise ValueError("features=pixels is for the digits only: pass features=inception, or a features file")
    return name if name != "auto" else "pixels" if digits else "inception"


def load_features(name: str, example: Tensor) -> Extractor:
    """An extractor, ready for evaluation.

    Args:
        name:    "pixels", "inception" (torch-fidelity's FID network, 2048 features) or a file's path
        example: a few of the images, uint8 [B, 3, H, W]
    """
    named = {"pixels": Pixels, "inception": Inception}
    return (named[name]() if name in named else FromFile(Path(name), example)).eval()
