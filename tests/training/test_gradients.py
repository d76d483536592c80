"""The guard: clipping, skipping, counting, stopping; with and without a scaler."""

import math

import pytest
import torch
from torch import nn

from ldm.training.gradients import DivergenceError, StepGuard


def parameters(*gradients):
    made = [nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return made


def guard(**options):
    return StepGuard(**({"clip": None, "spike": None, "patience": 3} | options))


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_clipping_is_of_the_whole_norm_whatever_the_scale(scale):
    trained = parameters([3.0 * scale], [0.0, 4.0 * scale])
    allowed, terms = guard(clip=1.0).allows(trained, scale)
    assert allowed
    assert terms["grad_norm"] == pytest.approx(5.0)
    torch.testing.assert_close(trained[0].grad / scale, torch.tensor([0.6]))
    torch.testing.assert_close(trained[1].grad / scale, torch.tensor([0.0, 0.8]))
    below = parameters([0.3])
    guard(clip=1.0).allows(below, 1.0)
    torch.testing.assert_close(below[0].grad, torch.tensor([0.3]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_skipped_counted_and_end_in_a_stop(bad):
    it = guard()
    for wanted in (1, 2):
        allowed, terms = it.allows(parameters([bad, 1.0]), 1.0)
        assert (allowed, terms["skipped"]) == (False, wanted)
    assert it.allows(parameters([1.0]), 1.0)[0]
    for _ in range(2):
        it.allows(parameters([bad]), 1.0)
    with pytest.raises(DivergenceError, match="3 steps in a row"):
        it.allows(parameters([bad]), 1.0)
    assert int(it.counts[1]) == 5


def test_spikes_are_measured_against_the_running_mean_once_it_has_settled():
    it = guard(spike=5.0)
    assert it.allows(parameters([1.0]), 1.0)[0]
    assert it.allows(parameters([100.0]), 1.0)[0]  # too early to tell
    for _ in range(700):
        it.allows(parameters([1.0]), 1.0)
    assert float(it.usual) == pytest.approx(1.0, abs=0.05)
    assert not it.allows(parameters([8.0]), 1.0)[0]
    assert it.allows(parameters([4.0]), 1.0)[0]
    copy = guard(spike=5.0)
    copy.load_state_dict(it.state_dict())  # what a resumed run knows
    assert not copy.allows(parameters([8.0]), 1.0)[0]


def test_a_scaled_and_clipped_step_is_the_unscaled_one():
    """Through torch's own scaler and Adam, fused and not: the same parameters as without any scaling."""
    for fused in (False, True):
        results = []
        for enabled in (False, True):
            weight = nn.Parameter(torch.tensor([1.0, -2.0]))
            optimizer = torch.optim.Adam([weight], lr=0.1, fused=fused)
            scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0)
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale((weight**2).sum()).backward()
                assert guard(clip=0.5).allows([weight], scaler.get_scale() if enabled else 1.0)[0]
                scaler.step(optimizer)
                scaler.update()
            results.append(weight.detach())
        torch.testing.assert_close(*results)
