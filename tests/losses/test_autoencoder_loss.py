"""Stage 1's objective against LDM's, written by hand in float64."""

import pytest
import torch
from torch import nn

from ldm.latents import DiagonalGaussian
from ldm.losses.autoencoder_loss import AutoencoderLoss
from ldm.losses.regularizer import KL

WEIGHTS = {
    "perceptual_weight": 0.7,
    "perceptual_pretrained": False,
    "reduction": "mean",
    "learn_logvar": False,
    "disc_loss": "hinge",
    "disc_weight": 0.5,
    "disc_start": 10,
    "disc_warmup": 0,
    "disc_ramp": 0,
    "disc_forward": "reuse",
    "disc_augment": [],
    "r1": 0.0,
    "r1_every": 16,
    "lecam": 0.0,
}


def make(**options):
    return AutoencoderLoss(regularizer=KL(weight=1e-3), **(WEIGHTS | options))


@pytest.fixture
def tensors():
    x, x_hat = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    return x, x_hat.requires_grad_(), DiagonalGaussian(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8))


def test_sums_are_ldms(tensors):
    x, x_hat, posterior = tensors
    loss = make(reduction="sum", learn_logvar=True)
    loss.logvar.data.fill_(0.2)
    nll, penalty = loss.nll(x, x_hat)[0], loss.penalty(x, posterior)[0]
    p_loss = loss.perceptual.net.double()(x.double(), x_hat.double())  # [B, 1, 1, 1]
    loss.perceptual.net.float()
    rec = (x.double() - x_hat.double()).abs() + 0.7 * p_loss  # broadcast over C, H, W
    s = torch.tensor(0.2, dtype=torch.float64)
    torch.testing.assert_close(nll.double(), (rec / s.exp() + s).sum() / 2, rtol=1e-5, atol=0)
    mean, logvar = posterior.mean.double(), posterior.logvar.double()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / 2
    torch.testing.assert_close(penalty.double(), 1e-3 * kl, rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(nll, loss.logvar)
    torch.testing.assert_close(slope.double(), (1 - rec / s.exp()).sum() / 2, rtol=1e-4, atol=1e-2)


def test_means_are_the_sums_divided(tensors):
    x, x_hat, posterior = tensors
    mean, total = make(), make(reduction="sum")
    torch.testing.assert_close(3 * 32 * 32 * mean.nll(x, x_hat)[0], total.nll(x, x_hat)[0])
    torch.testing.assert_close(3 * 32 * 32 * mean.penalty(x, posterior)[0], total.penalty(x, posterior)[0])


def test_the_discriminator_trains_then_is_felt_then_grows():
    loss = make(disc_warmup=5, disc_ramp=4)
    assert [loss.disc_trains(i) for i in (9, 10, 99)] == [False, True, True]
    assert [loss.disc_factor(i) for i in (0, 14, 15, 16, 18, 99)] == [0, 0, 0.125, 0.25, 0.5, 0.5]
    ldms = make()
    assert [ldms.disc_factor(i) for i in (9, 10)] == [0, 0.5]
    assert not make(disc_weight=0).disc_trains(99)


def test_discriminators_loss_does_not_reach_the_autoencoder(tensors):
    x, x_hat, _ = tensors
    judge = nn.Conv2d(3, 1, 4)
    loss, terms = make().discriminate(x, x_hat, judge, 0)
    loss.backward()
    assert x_hat.grad is None
    assert judge.weight.grad is not None
    real, fake = judge(x), judge(x_hat)
    assert terms["logits_gap"].item() == pytest.approx((real.mean() - fake.mean()).item(), abs=1e-6)
    assert terms["disc_accuracy"].item() == pytest.approx(
        ((real > 0).float().mean() + (fake < 0).float().mean()).item() / 2, abs=1e-6
    )


def test_r1_is_lazy_and_weighted_for_it(tensors):
    x, x_hat, _ = tensors
    judge, loss = nn.Conv2d(3, 1, 4), make(r1=2.0, r1_every=4)
    plain = make().discriminate(x, x_hat, judge, 1)[0]
    torch.testing.assert_close(loss.discriminate(x, x_hat, judge, 1)[0], plain)
    with_r1, terms = loss.discriminate(x, x_hat, judge, 4)
    torch.testing.assert_close(with_r1, plain + 4 * terms["r1"])


def test_lecams_anchors_follow_the_logits():
    loss = make(lecam=0.1)
    loss.follow(torch.tensor(2.0), torch.tensor(-1.0), 0)
    assert loss.anchors.tolist() == [2, -1]
    loss.follow(torch.tensor(3.0), torch.tensor(-1.0), 1)
    torch.testing.assert_close(loss.anchors, torch.tensor([2.01, -1.0]))
    loss.follow(torch.tensor(float("nan")), torch.tensor(-1.0), 2)
    torch.testing.assert_close(loss.anchors, torch.tensor([2.01, -1.0]))


def test_lpips_is_not_computed_where_it_counts_for_nothing(tensors):
    x, x_hat, _ = tensors
    loss = make(perceptual_weight=0.0)
    assert "lpips" not in loss.nll(x, x_hat)[1]
    assert loss.eval().nll(x, x_hat)[1]["lpips"] > 0  # but measured


@pytest.mark.parametrize(
    "option", [{"reduction": "max"}, {"disc_loss": "wgan"}, {"disc_forward": "x"}, {"disc_augment": ["x"]}]
)
def test_unknown_choices_are_named(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}(=.*)? must"):
        make(**option)
