import pytest
import torch
from torch import nn

from ldm.latents import DiagonalGaussian
from ldm.losses.autoencoder import AutoencoderLoss

WEIGHTS = {"perceptual_weight": 0.7, "kl_weight": 1e-3, "disc_weight": 0.5, "disc_start": 10}


@pytest.fixture(scope="module")
def loss():
    return AutoencoderLoss(**WEIGHTS, perceptual_pretrained=False)


@pytest.fixture
def tensors():
    x, x_hat = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    return x, x_hat.requires_grad_(), DiagonalGaussian(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8))


def test_generator_loss_is_the_sum_by_hand(loss, tensors):
    x, x_hat, posterior = tensors
    nll, regularisation, terms = loss.reconstruction(x, x_hat, posterior)
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).sum() / 2
    torch.testing.assert_close(regularisation, 1e-3 * kl / (3 * 32 * 32))
    torch.testing.assert_close(nll, (x - x_hat).abs().mean() + 0.7 * loss.perceptual.net(x, x_hat).mean())
    assert set(terms) == {"l1", "lpips", "kl"}


def test_discriminator_counts_from_disc_start_on(loss, tensors):
    judge, x = nn.Conv2d(3, 1, 4), tensors[0]
    last = nn.Conv2d(3, 3, 1)
    for batches, adversarial in ((9, False), (10, True)):
        _, terms = loss.generator(x, last(tensors[1]), tensors[2], judge, last.weight, batches)
        assert ("disc_weight" in terms) == adversarial


def test_discriminators_loss_does_not_reach_the_autoencoder(loss, tensors):
    x, x_hat, _ = tensors
    judge = nn.Conv2d(3, 1, 4)
    loss.discriminator(x, x_hat, judge)[0].backward()
    assert x_hat.grad is None
    assert judge.weight.grad is not None
