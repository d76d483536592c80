import torch
import torch.nn.functional as F
from torch import nn

from ldm.losses.adversarial import balance, hinge_discriminator, hinge_generator


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])
    assert hinge_discriminator(real, fake) == 0.5 * ((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3)
    assert hinge_generator(fake) == 0.5
    assert hinge_discriminator(torch.zeros(3), torch.zeros(3)) == 1


def test_balance_is_the_adaptive_weight_by_plain_autograd():
    torch.manual_seed(0)
    body, last = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 3, 3).double()
    judge = nn.Conv2d(3, 1, 3).double()
    x, target = torch.randn(2, 3, 9, 9).double(), torch.randn(2, 3, 5, 5).double()

    def terms():
        x_hat = last(torch.tanh(body(x)))
        return x_hat, F.l1_loss(x_hat, target), -judge(x_hat).square().mean()

    _, nll, g = terms()
    grads = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in (nll, g)]
    expected_weight = 0.5 * (grads[0] / (grads[1] + 1e-4)).clamp(0, 1e4)
    parameters = [*body.parameters(), *last.parameters()]
    expected = torch.autograd.grad(nll + expected_weight.detach() * g, parameters)

    x_hat, nll, g = terms()
    loss, weight = balance(nll, g, x_hat, last.weight, disc_weight=0.5)
    torch.testing.assert_close(weight, expected_weight)
    torch.testing.assert_close(loss, (nll + weight * g).detach())
    for found, wanted in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted)
