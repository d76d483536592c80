import pytest
import torch
from closed_forms import PATHS, GaussianData


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param]


@pytest.fixture
def gaussian():
    return GaussianData()


@pytest.fixture
def times():
    return torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
