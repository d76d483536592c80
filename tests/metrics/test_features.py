import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ldm.metrics.features import Inception, LogitsFromFile, load_features


def images(n, high=255, side=2):
    return torch.randint(0, high, (n, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_features_from_a_file(tmp_path: Path, kind):
    class Net(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float().mean((2, 3))

    example, path = images(4), tmp_path / f"features.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters; reading must be silent
        if kind == "pt":
            torch.jit.save(torch.jit.script(Net()), path)
        else:
            batch = torch.export.Dim("batch")
            torch.export.save(torch.export.export(Net(), (example,), dynamic_shapes=({0: batch},)), path)
    network = load_features(str(path), example)
    torch.testing.assert_close(network(example), Net()(example))
    assert network.num_features == 3
    assert network.identity.startswith(f"features.{kind}, sha256 ")


@pytest.mark.parametrize("default", [True, False])
def test_a_file_that_knows_features_and_logits_is_asked_for_either(tmp_path: Path, default):
    class Net(nn.Module):
        def forward(self, image: torch.Tensor, return_features: bool = default) -> torch.Tensor:
            return image.float().mean((2, 3)) if return_features else image.float().sum((1, 2, 3))[:, None]

    path = tmp_path / "both.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's end
        torch.jit.save(torch.jit.script(Net()), path)
    assert load_features(str(path), images(4)).num_features == 3
    assert LogitsFromFile(path, images(4), key="classifier").num_features == 1


def test_features_that_can_not_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"features=.*nothing\.pt does not exist"):
        load_features(str(tmp_path / "nothing.pt"), images(2))
    (tmp_path / "bad.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"bad\.pt can't be used"):
        load_features(str(tmp_path / "bad.pt"), images(2))

    class Two(nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return image, image

    torch.export.save(torch.export.export(Two(), (images(2),)), tmp_path / "two.pt2")
    with pytest.raises(ValueError, match=r"two\.pt2 returns a tuple, not a tensor"):
        load_features(str(tmp_path / "two.pt2"), images(2))

    class Fixed(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float().mean((2, 3))

    torch.export.save(torch.export.export(Fixed(), (images(2),)), tmp_path / "fixed.pt2")
    with pytest.raises(ValueError, match=r"fixed\.pt2 can't be used"):  # on batches of another size
        load_features(str(tmp_path / "fixed.pt2"), images(2))


def test_inception_offline_says_where_the_file_goes(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3", offline)
    with pytest.raises(ValueError, match=r"put the file at .*weights-inception-2015-12-05-6726825d\.pth"):
        load_features("inception", images(2))


@pytest.mark.slow
def test_inception_gives_what_torch_fidelity_gives_and_adms_spatial_features(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "random.pth"
    with pytest.MonkeyPatch.context() as patch:  # random weights in place of the download
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, weights)
        bare = FeatureExtractorInceptionV3(
            "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    torch.save(bare.state_dict(), weights)
    ours, image = Inception(weights).eval(), images(2, side=40)
    found = ours.outputs(image)
    theirs, logits = bare.eval()(image)
    torch.testing.assert_close(found["features"], theirs)
    torch.testing.assert_close(found["logits"], logits)
    seen = {}  # ADM takes the first 7 channels of TensorFlow's mixed_6/conv:0, the 1x1 branch, with channels last
    bare.Mixed_6d.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    bare(image)
    branch = bare.Mixed_6d.branch1x1
    expected = torch.nn.functional.conv2d(seen["x"], branch.conv.weight)
    norm = branch.bn
    expected = (expected - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    expected = (expected * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()[:, :7]
    for row, column in ((0, 0), (3, 16), (16, 2)):
        start = 7 * (17 * row + column)
        torch.testing.assert_close(found["spatial"][:, start : start + 7], expected[:, :, row, column])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "features": (2, 2048),
        "logits": (2, 1008),
        "spatial": (2, 7 * 17 * 17),
    }
    assert ours(image).shape == (2, 2048)
