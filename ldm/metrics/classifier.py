"""Class accuracy of conditional samples: by a given network, or for digits by a support-vector machine."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm.metrics.features import LogitsFromFile, Pixels


class Classifier(Protocol):
    """Images, uint8 [B, 3, H, W], to class indices, [B]."""

    identity: str

    def predict(self, image: Tensor) -> Tensor: ...


class PixelClassifier:
    """scikit-learn's SVC on 8 x 8 grey pixels, fitted on real images, uint8 [N, 3, H, W], and their labels [N]."""

    identity = "SVC on grey 8x8 pixels"

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from sklearn.svm import SVC  # which takes a second to import

        self.svc = SVC().fit(Pixels()(images).numpy(), labels.numpy())

    def predict(self, image: Tensor) -> Tensor:
        return torch.from_numpy(self.svc.predict(Pixels()(image).cpu().numpy()))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of the images whose predicted label is their own."""
        return float((self.predict(images) == labels).double().mean())


class FileClassifier:
    """A TorchScript or torch.export file that maps uint8 [B, 3, H, W] to logits [B, K], in the order of the labels.

    Such a file is a program, which runs here with all that this user may do: load only files that you trust.
    """

    def __init__(self, path: Path, example: Tensor, classes: int) -> None:
        self.net = LogitsFromFile(path, example, key="classifier")
        self.identity = self.net.identity
        if self.net.num_features != classes:
            raise ValueError(f"classifier={path} knows {self.net.num_features} classes, the data {classes}")

    def to(self, device: torch.device) -> "FileClassifier":
        self.net.to(device)
        return self

    def predict(self, image: Tensor) -> Tensor:
        return self.net(image).argmax(1)
