"""Each term against a float64 reference by hand; the balanced gradients against plain autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.losses.adversarial import (
    BalancedBackward,
    adaptive_weight,
    generator_loss,
    hinge,
    lecam_penalty,
    r1_penalty,
    vanilla,
)


def test_discriminator_and_generator_losses_by_hand():
    real, fake = torch.randn(2, 3, 1, 5, 5, dtype=torch.float64)
    r, f = real.flatten().tolist(), fake.flatten().tolist()
    expected = 0.5 * (sum(max(0, 1 - v) for v in r) + sum(max(0, 1 + v) for v in f)) / len(r)
    assert hinge(real, fake).item() == pytest.approx(expected, rel=1e-12)
    logistic = F.binary_cross_entropy_with_logits
    expected = 0.5 * (logistic(real, torch.ones_like(real)) + logistic(fake, torch.zeros_like(fake)))
    torch.testing.assert_close(vanilla(real, fake), expected)
    assert generator_loss(fake).item() == pytest.approx(-sum(f) / len(f), rel=1e-12)
    assert hinge(torch.zeros(3), torch.zeros(3)) == 1


def test_lecam_by_hand():
    real, fake = torch.randn(2, 7, dtype=torch.float64)
    anchors = torch.tensor([0.4, -0.3], dtype=torch.float64)
    expected = (
        sum(max(0, r + 0.3) ** 2 for r in real.tolist()) / 7 + sum(max(0, 0.4 - f) ** 2 for f in fake.tolist()) / 7
    )
    assert lecam_penalty(real, fake, *anchors).item() == pytest.approx(expected, rel=1e-12)


def test_r1_of_a_quadratic_is_known():
    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x):
            return self.a * x.square()

    judge, x = Quadratic(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    penalty = r1_penalty(judge, x)  # |2 a x|^2
    torch.testing.assert_close(penalty, (36 * x.square()).flatten(1).sum(1).mean())
    penalty.backward()  # 8 a x^2
    torch.testing.assert_close(judge.a.grad, (24 * x.square()).flatten(1).sum(1).mean())


def test_adaptive_weight_is_clamped():
    one = torch.ones(4)
    assert adaptive_weight(one, torch.zeros(4)) == 1e4
    assert adaptive_weight(torch.zeros(4), one) == 0
    torch.testing.assert_close(adaptive_weight(3 * one, one), torch.tensor(6 / 2.0001))


class Toy(nn.Module):
    """A generator with a last layer, a discriminator, and a log-variance beside them."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 3, 3).double()
        self.judge = nn.Conv2d(3, 1, 3).double()
        self.logvar = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def terms(self, x, target, share):
        h = torch.tanh(self.body(x))
        x_hat = self.last(h)
        nll = F.l1_loss(x_hat, target) / self.logvar.exp() + self.logvar
        return share * nll, -share * self.judge(x_hat).square().mean(), 0.01 * share * h.square().mean(), x_hat

    @property
    def generator(self):
        return [*self.body.parameters(), *self.last.parameters()]


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_balanced_gradients_are_those_of_plain_autograd_on_the_whole_batch(parts, scale):
    torch.manual_seed(0)
    toy, factor = Toy(), 0.5
    x, target = torch.randn(4, 3, 9, 9).double(), torch.randn(4, 3, 5, 5).double()
    nll, g, penalty, _ = toy.terms(x, target, 1.0)
    norms = [torch.autograd.grad(loss, toy.last.weight, retain_graph=True)[0].norm() for loss in (nll, g)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    trained = [*toy.generator, toy.logvar]
    expected = torch.autograd.grad(nll + factor * weight * g + penalty, trained)

    backward = BalancedBackward(
        last_layer=toy.last.weight,
        parameters=toy.generator,
        also=[toy.logvar],
        backward=lambda loss: (scale * loss).backward(),
        scale=scale,
    )
    toy.requires_grad_(True)
    toy.judge.requires_grad_(False)
    for i, (a, b) in enumerate(zip(x.chunk(parts), target.chunk(parts), strict=True)):
        nll, g, penalty, x_hat = toy.terms(a, b, 1 / parts)
        if i < parts - 1:
            backward.add(nll, g, penalty, x_hat)
        else:
            torch.testing.assert_close(backward.finish(nll, g, penalty, x_hat, factor), weight)
    for parameter, wanted in zip(trained, expected, strict=True):
        torch.testing.assert_close(parameter.grad, scale * wanted)
    assert all(p.grad is None for p in toy.judge.parameters())
