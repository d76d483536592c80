"""How far a reconstruction is from its image: L1, and LPIPS on VGG16 features (Zhang et al. 2018)."""

import logging
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import lpips
import torch
from torch import Tensor, nn

from ldm.runtime.files import sha256

log = logging.getLogger(__name__)
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


class PerceptualLoss:
    """LPIPS of x and x_hat, [B, 3, H, W] in [-1, 1] each: [B].

    It is frozen, always in evaluation mode (its dropout would make the loss noisy), and no nn.Module: so it enters
    neither checkpoints nor averages nor DDP, and copies of its owner share it. `identity` says which VGG16 it has.

    Args:
        pretrained: True downloads torchvision's VGG16 once; a path loads that file; False leaves VGG16 at its random
                    initialisation, which is a weak but real perceptual loss, for tests and offline demonstrations
        key:        the config's key of this option, for messages

    Raises:
        ValueError: if the weights are not there and can't be downloaded, or are not VGG16's.
    """

    identity = "random VGG16 weights"

    def __init__(self, *, pretrained: bool | str, key: str = "loss.perceptual_pretrained") -> None:
        if pretrained is False:
            log.warning("LPIPS runs on random VGG16 weights (%s=false)", key)
            self.net = _random_lpips()
        else:
            file, weights = _vgg16_weights(None if pretrained is True else Path(pretrained), key)
            self.net = deepcopy(_random_lpips())
            self.net.net.load_state_dict(_in_lpips_names(weights, self.net.net))
            self.identity = f"VGG16 weights, sha256 {sha256(file)[:16]}"

    def __deepcopy__(self, memo: dict[int, object]) -> "PerceptualLoss":
        return self

    def __call__(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if next(self.net.parameters()).device != x.device:
            self.net.to(x.device)
        kind = next(self.net.parameters()).dtype if x.dtype == torch.float64 else x.dtype  # VGG16 stays in float32
        return self.net(x.to(kind), x_hat.to(kind)).flatten().to(x.dtype)


@cache
def _random_lpips() -> Any:
    """LPIPS on random VGG16 weights, the same in every run and on every rank; made once, since it takes seconds."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # lpips 0.1.4 calls torchvision's constructor and torch.load in their old forms
        warnings.filterwarnings("ignore", module=r"torchvision|lpips")
        warnings.filterwarnings("ignore", message=r".*weights_only.*", category=FutureWarning)
        torch.manual_seed(0)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False).eval()


def _vgg16_weights(path: Path | None, key: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of torchvision's VGG16, downloaded where no path is given, and what it holds."""
    file = path or Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_URL).name
    try:
        if path is None:
            weights = torch.hub.load_state_dict_from_url(VGG16_URL, map_location="cpu", weights_only=True)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, URLError) as error:
        raise ValueError(
            f"LPIPS needs VGG16's ImageNet weights, and {file} is not there ({error}). Put {VGG16_URL} at that "
            f"path, or name the file in {key}=PATH; =false takes random VGG16 weights"
        ) from None
    if "features.0.weight" not in weights:
        raise ValueError(f"{key}={file} is not torchvision's VGG16 ({VGG16_URL})")
    return file, weights


def _in_lpips_names(weights: dict[str, Tensor], vgg16: nn.Module) -> dict[str, Tensor]:
    """torchvision's convolutions, features.N, by the names that LPIPS has for them, sliceK.N."""
    return {
        f"{name}.{kind}": weights[f"features.{name.rsplit('.', 1)[1]}.{kind}"]
        for name, module in vgg16.named_modules()
        if isinstance(module, nn.Conv2d)
        for kind in ("weight", "bias")
    }


def l1(x: Tensor, x_hat: Tensor) -> Tensor:
    """The mean absolute error of an element, for each image of [B, 3, H, W]: [B]."""
    return (x - x_hat).abs().flatten(1).mean(1)
