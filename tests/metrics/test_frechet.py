import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from ldm.metrics.features import load_features
from ldm.metrics.frechet import frechet_distance


class Flat(nn.Module):
    num_features = 12

    def forward(self, image):
        return image.flatten(1).double()


def images(n, low, high, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, 3, 2, 2), generator=generator).to(torch.uint8)


def test_is_the_closed_form_of_two_gaussians():
    real, fake = images(600, 0, 255, 0), images(500, 40, 140, 1)
    value, n_real, n_fake = frechet_distance(Flat(), real.split(70), fake.split(64))
    assert (n_real, n_fake) == (600, 500)
    a, b = (x.flatten(1).double().numpy() for x in (real, fake))
    c, d = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(c @ d).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root)
    assert value == pytest.approx(expected, rel=1e-6)


def test_of_a_set_with_itself_is_zero_and_a_shift_counts_squared():
    real = images(400, 0, 200, 0)
    assert frechet_distance(Flat(), [real], [real])[0] == pytest.approx(0, abs=1e-3)
    assert frechet_distance(Flat(), [real], [real + 5])[0] == pytest.approx(12 * 25, rel=1e-6)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="needs two images a side, not 400 and 1"):
        frechet_distance(Flat(), [images(400, 0, 9, 0)], [images(1, 0, 9, 0)])


@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_features_from_a_file(tmp_path: Path, kind):
    class Net(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float().mean((2, 3))

    example, path = images(4, 0, 255, 0), tmp_path / f"features.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters; reading must be silent
        if kind == "pt":
            torch.jit.save(torch.jit.script(Net()), path)
        else:
            batch = torch.export.Dim("batch")
            torch.export.save(torch.export.export(Net(), (example,), dynamic_shapes=({0: batch},)), path)
    network, identity = load_features(str(path), example)
    torch.testing.assert_close(network(example), Net()(example))
    assert network.num_features == 3
    assert identity.startswith(f"features.{kind}, sha256 ")


def test_features_that_can_not_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"features=.*nothing\.pt does not exist"):
        load_features(str(tmp_path / "nothing.pt"), images(2, 0, 9, 0))
    (tmp_path / "bad.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"bad\.pt can't be used"):
        load_features(str(tmp_path / "bad.pt"), images(2, 0, 9, 0))


def test_inception_offline_says_where_the_file_goes(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", offline)
    with pytest.raises(ValueError, match=r"put the file at .*weights-inception-2015-12-05-6726825d\.pth"):
        load_features("inception", images(2, 0, 9, 0))
