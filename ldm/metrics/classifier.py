"""Class accuracy of conditional samples, by a support-vector machine on grey 8 x 8 images: for digits only."""

import numpy as np
import torch
from sklearn.svm import SVC

from ldm.metrics.features import Pixels


class PixelClassifier:
    """scikit-learn's SVC on 8 x 8 grey pixels, fitted on real images, uint8 [N, 3, H, W], and their labels [N]."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.svc = SVC().fit(self._features(images), labels.numpy())

    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of the images whose predicted label is their own."""
        return float(np.mean(self.svc.predict(self._features(images)) == labels.numpy()))

    @staticmethod
    def _features(images: torch.Tensor) -> np.ndarray:
        return Pixels()(images).numpy()
