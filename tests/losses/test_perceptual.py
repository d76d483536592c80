import hashlib
from copy import deepcopy
from urllib.error import URLError

import lpips
import pytest
import torch
import torchvision

from ldm.losses.perceptual import PerceptualLoss, l1


@pytest.fixture(scope="module")
def loss():
    return PerceptualLoss(pretrained=False)


def test_is_deterministic_frozen_and_shared_by_copies(loss):
    x, x_hat = torch.rand(2, 2, 3, 32, 32)
    assert torch.equal(loss(x, x_hat), loss(x, x_hat))
    assert not any(m.training for m in loss.net.modules())
    assert not any(p.requires_grad for p in loss.net.parameters())
    assert deepcopy(loss) is loss
    assert torch.equal(PerceptualLoss(pretrained=False)(x, x_hat), loss(x, x_hat))


def test_weights_from_a_file_are_those_of_torchvision(tmp_path, loss):
    torch.manual_seed(1)  # other weights than the seed 0 of the untrained loss
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])  # VGG16's, without its classifier
    vgg = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(vgg, tmp_path / "vgg16.pth")
    x, x_hat = torch.rand(2, 2, 3, 32, 32)
    ours = PerceptualLoss(pretrained=str(tmp_path / "vgg16.pth"))
    oracle = deepcopy(loss.net)
    assert isinstance(oracle, lpips.LPIPS)
    state = {}
    for slice_, layers in (("slice1", (0, 2)), ("slice2", (5, 7)), ("slice3", (10, 12, 14)), ("slice4", (17, 19, 21)),
                           ("slice5", (24, 26, 28))):  # fmt: skip
        for i in layers:
            for kind in ("weight", "bias"):
                state[f"{slice_}.{i}.{kind}"] = vgg[f"features.{i}.{kind}"]
    oracle.net.load_state_dict(state)
    torch.testing.assert_close(ours(x, x_hat), oracle(x, x_hat).flatten())
    assert not torch.equal(ours(x, x_hat), loss(x, x_hat))
    digest = hashlib.sha256((tmp_path / "vgg16.pth").read_bytes()).hexdigest()
    assert ours.identity == f"VGG16 weights, sha256 {digest[:16]}"


def test_missing_weights_say_where_to_put_them(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere\.pth is not there .* loss\.perceptual_pretrained=PATH"):
        PerceptualLoss(pretrained=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match=r"name the file in lpips=PATH"):
        PerceptualLoss(pretrained=str(tmp_path / "nowhere.pth"), key="lpips")

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"checkpoints/vgg16-397923af\.pth is not there .* Put https://"):
        PerceptualLoss(pretrained=True)


def test_l1_is_per_image():
    torch.testing.assert_close(l1(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)), torch.ones(2))
