"""The figures that the demonstration relies on, from the real digits alone."""

import pytest
import torch

from ldm.data.image_data import in_order
from ldm.data.sources import Digits
from ldm.metrics.classifier import PixelClassifier
from ldm.metrics.reconstruction import ReconstructionMetrics


def all_of(split):
    images, labels = zip(*in_order(Digits(resolution=32), split, 250), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_classifier_knows_held_out_digits():
    classifier = PixelClassifier(*all_of("train"))
    images, labels = all_of("val")
    assert classifier.accuracy(images, labels) >= 0.97
    assert classifier.accuracy(images, (labels + 1) % 10) < 0.05


def test_psnr_by_hand():
    scores, (images, _) = ReconstructionMetrics(None, None), all_of("val")
    worse = (images.int() + 10).clamp(max=255).to(torch.uint8)
    scores.update(worse[:100], images[:100])
    scores.update(worse[100:], images[100:])
    mse = (worse.double() - images.double()).square().mean((1, 2, 3))
    assert scores.compute()["psnr"] == pytest.approx((10 * torch.log10(255**2 / mse)).mean().item(), rel=1e-5)
