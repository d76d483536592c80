import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.latents import DiagonalGaussian
from ldm.losses.augment import Augment, color, cutout, translation
from ldm.losses.regularizer import KL, NoRegularizer, ScaleEquivariance


def test_kl_per_image_and_per_element():
    posterior = DiagonalGaussian(torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8))
    x = torch.zeros(3, 3, 32, 32)
    oracle = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).flatten(1)
    torch.testing.assert_close(KL(weight=0.1).penalty(posterior, x), 0.1 * oracle.sum(1) / 3072)
    torch.testing.assert_close(KL(weight=0.1, per="element").penalty(posterior, x), 0.1 * oracle.mean(1))
    assert NoRegularizer().penalty(posterior, x).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"regularizer\.per"):
        KL(weight=1, per="batch")


def test_equivariance_commutes_with_a_decoder_that_does():
    """Nearest-neighbour enlargement commutes with turns, and on smooth images nearly with resizing."""
    rule = ScaleEquivariance(weight=0, probability=1.0, min_scale=0.25)
    line = torch.linspace(-1, 1, 16)
    z = (line[:, None] + 0.5 * line[None, :]).expand(1, 3, 16, 16)
    x, sides = torch.nn.functional.interpolate(z, scale_factor=4, mode="bilinear"), set()
    for _ in range(40):
        target, turned = rule.transform(x, z)
        assert target.shape[-1] == 4 * turned.shape[-1]
        decoded = torch.nn.functional.interpolate(turned, scale_factor=4, mode="bilinear")
        assert (decoded - target)[..., 4:-4, 4:-4].abs().max() < 0.15
        sides.add(turned.shape[-1])
    assert min(sides) >= 4 and max(sides) <= 16 and len(sides) > 5
    same = ScaleEquivariance(weight=0, probability=0.0).transform(x, z)
    assert same[0] is x and same[1] is z


def test_augmentations():
    x = torch.rand(64, 3, 16, 16) * 2 - 1
    moved = translation(x + 3)  # no zero before
    for image, original in zip(moved, x + 3, strict=True):
        rows, columns = (image[0] != 0).any(1).nonzero().flatten(), (image[0] != 0).any(0).nonzero().flatten()
        assert len(rows) >= 14 and len(columns) >= 14
        inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left = (0 if i[0] > 0 else 16 - len(i) for i in (rows, columns))
        assert torch.equal(inside, original[:, top : top + len(rows), left : left + len(columns)])
    assert len({(image[0] != 0).sum().item() for image in moved}) > 5
    share = (cutout(torch.ones_like(x)) == 0).float().mean()
    assert 0.1 < share < 0.25  # a quarter, less what lies outside
    x = x.requires_grad_()
    out = Augment(["color", "translation", "cutout"])(x)
    assert out.shape == x.shape
    assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0
    torch.testing.assert_close(color(x).mean().item(), x.mean().item(), atol=0.2, rtol=0)
    assert Augment([])(x) is x
