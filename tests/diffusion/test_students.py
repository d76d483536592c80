"""MeanFlow and consistency where the answer is known: Gaussian data, whose flow is in closed form."""

import pytest
import torch
from support.students import GAUSSIAN, LABELS, ONES, SHAPE, Exact, consistency_net, normal, objective, small_net
from torch import nn

from ldm.condition import no_label
from ldm.diffusion.consistency import Consistency
from ldm.diffusion.meanflow import MeanFlow
from ldm.diffusion.objective import expand
from ldm.diffusion.path import CosinePath, LinearPath, VEPath
from ldm.diffusion.samplers import jump
from ldm.diffusion.student import Teacher
from ldm.diffusion.times import LogNormal, uniform_grid
from ldm.diffusion.weighting import EDM, P2, MinSNR, TruncatedSNR, Unweighted


def average_velocity(path, x_t, t, s):
    """(x_t - x_s) / (t - s) along the exact flow of the Gaussian."""
    now, then = path(expand(t, x_t)), path(expand(s, x_t))
    return (x_t - GAUSSIAN.flow(then, x_t, now)) / expand(t - s, x_t)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()], ids=["linear", "cosine"])
@pytest.mark.parametrize("method", ["exact", 0.005])
def test_the_exact_average_velocity_solves_meanflows_identity(path, method):
    student = MeanFlow(objective=objective(path, average=True), derivative=method)
    s = torch.linspace(0.05, 0.6, SHAPE[0], dtype=torch.float64)
    t = s + torch.linspace(0.3, 0.02, SHAPE[0], dtype=torch.float64)
    x_t = normal()
    c = path(expand(t, x_t))
    x0 = GAUSSIAN.x0(c, x_t)
    v = c.dalpha * x0 + c.dsigma * (x_t - c.alpha * x0) / c.sigma
    net = lambda x_t, t, condition: average_velocity(path, x_t, t, condition.s)  # noqa: E731
    u = average_velocity(path, x_t, t, s)
    target = student.target(net, x_t, v, t, s, LABELS)
    torch.testing.assert_close(target, u, rtol=0, atol=1e-10 if method == "exact" else 5e-4)
    assert (target - v).abs().max() > 0.01


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_jump_by_the_exact_average_velocity_is_the_flow(path, steps):
    learned = objective(path, average=True)

    def net(x_t, t, condition):
        return average_velocity(path, x_t, t, condition.s)

    # float32 times would round: the network is asked in the state's own type
    times = uniform_grid(path, steps)
    walked = jump(learned.denoiser(net, LABELS), path, normal(), times)
    zero, one = (path(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    torch.testing.assert_close(walked, GAUSSIAN.flow(zero, normal(), one), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "weighting", [Unweighted(), MinSNR(), TruncatedSNR(), EDM(), P2()], ids=lambda w: type(w).__name__
)
def test_at_one_time_twice_meanflow_is_flow_matching_to_the_bit(weighting):
    net = small_net(second_time=True).eval()
    x0, eps, y = normal(1).float(), normal(2).float(), LABELS % 3
    plain = objective(weighting=weighting)
    student = MeanFlow(objective=objective(average=True, weighting=weighting), same=1.0)
    drawn = student.times(SHAPE[0], torch.device("cpu"))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    loss, t = student.loss(net, x0, y, drawn=drawn, eps=eps, batch=0)
    expected, _ = plain.loss(net, x0, y, t=drawn[:, 0], eps=eps)
    assert torch.equal(loss, expected)
    assert torch.equal(t, drawn[:, 0])


def test_meanflows_times_are_of_the_objectives_sampler_in_order():
    student = MeanFlow(objective=objective(average=True), same=0.25)
    t, s = student.times(4000, torch.device("cpu")).unbind(1)
    assert (s <= t).all()
    assert (s == t).float().mean() == pytest.approx(0.25, abs=0.03)
    assert t[s < t].mean() == pytest.approx(2 / 3, abs=0.02)  # the larger of two even draws
    assert s[s < t].mean() == pytest.approx(1 / 3, abs=0.02)


def test_meanflow_averages_the_guided_velocity():
    """omega v + kappa u(c) + (1 - omega - kappa) u(null), omega = guidance (1 - kappa); unlabelled samples keep v."""
    null = 5
    net = _Labelled()
    y = torch.tensor([0, 1, 2, null, 0, 1, null])
    for mix, omega in ((0.0, 3.0), (0.5, 1.5)):
        student = MeanFlow(objective=objective(average=True), null=no_label(null), same=1.0, guidance=3.0, mix=mix)
        drawn = student.times(SHAPE[0], torch.device("cpu"))
        x0, eps = normal(1), normal(2)
        loss, _ = student.loss(net, x0, y, drawn=drawn, eps=eps, batch=0)
        labelled = expand(y, x0).double()
        wanted = omega * (eps - x0) + mix * labelled + (1 - omega - mix) * null
        wanted = torch.where(labelled == null, eps - x0, wanted)
        torch.testing.assert_close(loss, (labelled - wanted).square().mean((1, 2, 3)))


def test_meanflow_mixes_its_own_velocity_in_without_guidance_too():
    """(1 - kappa) v + kappa u(c), as omega + kappa = 1."""
    net, y = _Labelled(), torch.tensor([0, 1, 2, 5, 0, 1, 5])
    student = MeanFlow(objective=objective(average=True), same=1.0, mix=0.25)
    x0, eps = normal(1), normal(2)
    drawn = student.times(SHAPE[0], torch.device("cpu"))
    loss, _ = student.loss(net, x0, y, drawn=drawn, eps=eps, batch=0)
    own = expand(y, x0).double()
    torch.testing.assert_close(loss, (own - (0.75 * (eps - x0) + 0.25 * own)).square().mean((1, 2, 3)))
    assert student.passes == (1.0, 0.0)


class _Labelled(nn.Module):
    """Says its label."""

    def forward(self, x_t, t, condition):
        return expand(condition.label, x_t).to(x_t.dtype).expand_as(x_t)


@pytest.mark.parametrize("method", ["exact", 0.005])
def test_the_exact_consistency_function_has_no_tangent(method):
    student = Consistency(objective=objective(CosinePath(), "v"), derivative=method)
    t = torch.linspace(0.1, 0.95, SHAPE[0], dtype=torch.float64)
    c, x_t = CosinePath()(expand(t, normal())), normal()
    x0 = GAUSSIAN.x0(c, x_t)
    slope = c.alpha * (x_t - c.alpha * x0) / c.sigma - c.sigma * x0
    value, tangent = student.tangent(consistency_net, x_t, slope, t, LABELS, 1.0)
    torch.testing.assert_close(value, consistency_net(x_t, t, LABELS))
    assert tangent.abs().max() < (1e-10 if method == "exact" else 2e-3)
    _, early = student.tangent(consistency_net, x_t, slope, t, LABELS, 0.0)
    torch.testing.assert_close(early, -(c.alpha**2) * (value - slope))  # before the warm-up: regression on the slope


def test_a_taught_slope_is_the_teachers_own_on_any_of_its_paths():
    """The exact denoiser of another path and another parameterization says the same of the same noise level."""
    for path, parameterization in ((CosinePath(), "v"), (LinearPath(), "velocity"), (VEPath(sigma_max=80.0), "x0")):
        trained = objective(path, parameterization)
        teacher = Teacher(net=Exact(trained), objective=trained, null=no_label(100))
        student = Consistency(objective=objective(CosinePath(), "v"), teacher=teacher)
        t = torch.linspace(0.1, 0.95, SHAPE[0], dtype=torch.float64)
        c, x_t = CosinePath()(expand(t, normal())), normal()
        x0 = GAUSSIAN.x0(c, x_t)
        unlabelled = torch.full_like(LABELS, 100)
        slope = student._taught(x_t, t, unlabelled, ONES)
        torch.testing.assert_close(slope, c.alpha * (x_t - c.alpha * x0) / c.sigma - c.sigma * x0, rtol=1e-6, atol=1e-6)


def test_consistency_regresses_itself_plus_the_normalised_tangent():
    net = small_net().double().eval()
    student = Consistency(objective=objective(CosinePath(), "v", time_sampler=LogNormal(mean=-1.0, std=1.4)), warmup=10)
    drawn = student.times(SHAPE[0], torch.device("cpu")).double()
    y = LABELS % 3
    loss, t = student.loss(net, normal(1), y, drawn=drawn, eps=normal(2), batch=5)
    c = CosinePath()(expand(t, normal()))
    x_t, slope = c.alpha * normal(1) + c.sigma * normal(2), c.alpha * normal(2) - c.sigma * normal(1)
    _, tangent = student.tangent(net, x_t, slope, t, y, 0.5)
    size = tangent.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(loss, (size / (size + 0.1)) ** 2, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), net.out[2].bias)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("method", ["exact", 0.02])
def test_targets_know_neither_dropout_nor_half_precision(method):
    """Two masks, or eight bits, would be divided by the difference of two times."""
    net = small_net(second_time=True, dropout=0.5).train()
    student = MeanFlow(objective=objective(average=True), same=0.0, derivative=method)
    x0, eps, y = normal(1).float(), normal(2).float(), LABELS % 3
    drawn, asked = student.times(SHAPE[0], torch.device("cpu")), []
    student.target = lambda *words: asked.append(MeanFlow.target(student, *words)) or asked[-1]
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            student.loss(net, x0, y, drawn=drawn, eps=eps, batch=0)
    assert net.training
    assert torch.equal(*asked)
    consistency = Consistency(objective=objective(CosinePath(), "v"), warmup=1, derivative=method)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = consistency.loss(
            small_net(), x0, y, drawn=torch.stack([drawn[:, 0], 1 + 0 * drawn[:, 0]], 1), eps=eps, batch=1
        )
    assert loss.isfinite().all()
