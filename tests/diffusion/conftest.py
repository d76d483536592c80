import pytest
import torch
from support.closed_forms import ALL_PATHS, PATHS, GaussianData, MixtureData


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param]


@pytest.fixture(params=ALL_PATHS)
def any_path(request):
    return ALL_PATHS[request.param]


@pytest.fixture
def gaussian():
    return GaussianData()


@pytest.fixture
def mixture():
    return MixtureData()


@pytest.fixture
def times():
    return torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
