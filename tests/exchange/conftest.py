"""Networks that the tests of imports write to files."""

import pytest
import torch
from support.foreign import NET, SHAPE

from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(**SHAPE)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(**NET)
