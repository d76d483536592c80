"""Maximum likelihood of a continuous flow: a linear one in closed form, and both ways to its gradient."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ldm.diffusion.continuous_flow import negative_log_likelihood
from ldm.training.step_memory import Live


class Linear(nn.Module):
    """v = A x, of which x(1) = exp(A) x0."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x, t):
        return x @ self.matrix.T


class Curved(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, x, t):
        return self.layers(torch.cat([x, torch.sin(3 * t)[:, None]], dim=1))


MATRIX = torch.tensor([[0.3, -0.7], [0.5, -0.2]], dtype=torch.float64)


@pytest.mark.parametrize("adjoint", [True, False])
def test_a_linear_flows_likelihood_is_a_gaussians(adjoint):
    x0 = torch.randn(50, 2, dtype=torch.float64)
    nats, _ = negative_log_likelihood(Linear(MATRIX), x0, adjoint=adjoint, rtol=1e-9, atol=1e-9)
    back = torch.linalg.matrix_exp(-MATRIX)
    expected = -MultivariateNormal(torch.zeros(2).double(), back @ back.T).log_prob(x0)
    torch.testing.assert_close(nats, expected, rtol=1e-7, atol=1e-7)


def gradients(adjoint, rtol=1e-9):
    torch.manual_seed(0)
    net, x0 = Curved(), torch.randn(20, 2, dtype=torch.float64)
    nats, evaluations = negative_log_likelihood(net, x0, adjoint=adjoint, rtol=rtol, atol=rtol)
    forward = evaluations()
    nats.mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()]), forward, evaluations()


def test_the_adjoints_gradients_are_those_of_direct_differentiation():
    theirs, _, same = gradients(False)
    ours, before, after = gradients(True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert after > before == same  # it walks back


def test_the_adjoints_memory_does_not_grow_with_the_evaluations():
    def peak(adjoint, rtol):
        with Live() as live:
            _, forward, _ = gradients(adjoint, rtol)
        return live.peak, forward

    (few, short), (many, long) = peak(True, 1e-4), peak(True, 1e-10)
    assert long > 3 * short
    assert many <= 1.05 * few
    (few, short), (many, long) = peak(False, 1e-4), peak(False, 1e-10)
    assert many > 2 * few
