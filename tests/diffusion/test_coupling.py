import ot
import pytest
import torch

from ldm.diffusion.coupling import Independent, OptimalTransport, sinkhorn_plan, squared_distances


@pytest.fixture
def pairs():
    return torch.randn(48, 2, 3, 3) + 1, torch.randn(48, 2, 3, 3), torch.arange(48) % 3


def total(x0, eps):
    return (x0 - eps).square().sum().item()


def emd(x0, eps):
    """The exact optimal cost of a class, by POT."""
    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()) ** 2
    return len(x0) * ot.emd2([], [], cost.numpy())


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_permutes_the_noise_within_each_class(pairs, solver):
    x0, eps, y = pairs
    paired = OptimalTransport(solver=solver)(x0, eps, y)
    for label in range(3):
        before, after = (sorted(e[y == label].flatten(1).tolist()) for e in (eps, paired))
        assert before == after
    assert total(x0, paired) < total(x0, eps)


def test_the_exact_plan_costs_what_pots_does(pairs):
    x0, eps, y = pairs
    paired = OptimalTransport()(x0, eps, y)
    expected = sum(emd(x0[y == label], eps[y == label]) for label in range(3))
    assert total(x0, paired) == pytest.approx(expected, rel=1e-5)


def test_the_entropic_plan_is_pots_and_its_permutation_is_near_the_best(pairs):
    x0, eps, _ = pairs
    cost = squared_distances(x0.double(), eps.double())
    torch.testing.assert_close(cost, torch.cdist(x0.double().flatten(1), eps.double().flatten(1)) ** 2)
    plan = sinkhorn_plan(cost, 0.1, 500)
    uniform = torch.full((48,), 1 / 48, dtype=torch.float64)
    oracle = ot.sinkhorn(uniform, uniform, cost, 0.1 * cost.mean().item(), stopThr=1e-12, numItermax=5000)
    torch.testing.assert_close(plan, oracle, rtol=1e-4, atol=1e-8)
    paired = OptimalTransport(solver="sinkhorn")(x0, eps, torch.zeros(48))
    best, random = emd(x0, eps), total(x0, eps)
    assert best <= total(x0, paired) * (1 + 1e-6) < best + 0.15 * (random - best)


def test_independent_pairs_are_left_alone(pairs):
    x0, eps, y = pairs
    assert Independent()(x0, eps, y) is eps
    with pytest.raises(ValueError, match="solver=auction must be one of exact, sinkhorn"):
        OptimalTransport(solver="auction")
