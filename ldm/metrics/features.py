"""Feature extractors: modules that map images, uint8 [B, 3, H, W], to features [B, D]."""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.sources import Digits, Source
from ldm.files import sha256

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class Pixels(nn.Module):
    """Grey values at 8 x 8: features that need no weights, enough for the digits and for nothing else."""

    num_features = 64

    def forward(self, image: Tensor) -> Tensor:
        grey = image.float().mean(dim=1, keepdim=True) / 255
        return F.adaptive_avg_pool2d(grey, 8).flatten(1)


class FromFile(nn.Module):
    """A TorchScript (.pt) or torch.export (.pt2) file that maps uint8 [B, 3, H, W] to [B, D].

    Raises:
        ValueError: if the file is missing, is neither kind, or does not keep that contract on these images.
    """

    def __init__(self, path: Path, example: Tensor) -> None:
        super().__init__()
        if not path.exists():
            raise ValueError(f"features={path} does not exist: name a TorchScript .pt or a torch.export .pt2 file")
        try:
            loaded = torch.export.load(path).module() if path.suffix == ".pt2" else _load_torchscript(path)
            features = loaded(example)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"features={path} can't be used on {list(example.shape)} uint8 images: {reason}") from None
        if features.dim() != 2:
            raise ValueError(f"features={path} returns the shape {list(features.shape)}, not [B, D]")
        self.num_features = features.shape[1]
        self.module = loaded

    def train(self, mode: bool = True) -> "FromFile":  # noqa: ARG002
        """Exported modules have one mode only, and refuse to be asked."""
        return self

    def forward(self, image: Tensor) -> Tensor:
        return self.module(image)


def _load_torchscript(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # torch advises torch.export to those who write such files; published feature networks are TorchScript
        warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated.*", category=FutureWarning)
        return torch.jit.load(path).eval()


def features_for(name: str | None, source: Source) -> str | None:
    """ "auto" is pixels for the digits and inception for all else; pixels say nothing about photographs."""
    if name == "pixels" and not isinstance(source, Digits):
        raise ValueError("features=pixels is for the digits only: pass features=inception, or a features file")
    return name if name != "auto" else "pixels" if isinstance(source, Digits) else "inception"


def load_features(name: str, example: Tensor) -> tuple[nn.Module, str]:
    """An extractor and the identity that goes into a stamp.

    Args:
        name: "pixels", "inception" (torch-fidelity's FID network, 2048 features) or a file's path.
        example: a few of the images, uint8 [B, 3, H, W].
    """
    if name == "pixels":
        return Pixels().eval(), "grey 8x8 pixels"
    if name == "inception":
        from torchmetrics.image.fid import NoTrainInceptionV3

        path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise ValueError(
                f"features=inception needs {INCEPTION_URL}, and the download failed ({error}): put the file at {path}"
            ) from None
        network.num_features = 2048
        return network.eval(), f"torch-fidelity inception-v3-compat 2048, sha256 {sha256(path)[:16]}"
    return FromFile(Path(name), example), f"{Path(name).name}, sha256 {sha256(Path(name))[:16]}"
