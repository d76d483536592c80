"""Progressive distillation: its targets are the teacher's own steps."""

from functools import partial

import pytest
import torch
from support.closed_forms import ALL_PATHS, PATHS
from support.students import LABELS, ONES, SHAPE, Exact, normal, objective
from torch import nn

from ldm.condition import no_label
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.objective import expand
from ldm.diffusion.parameterization import target_coefficients
from ldm.diffusion.path import CosinePath, LinearPath
from ldm.diffusion.progressive import Progressive
from ldm.diffusion.samplers import ddim
from ldm.diffusion.student import Teacher
from ldm.diffusion.weighting import TruncatedSNR


def said(prediction, x_t, t):
    return prediction


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("name", [*PATHS, "vp", "cosine table"])
@pytest.mark.parametrize("parameterization", ["velocity", "v", "x0"])
def test_progressives_target_ends_where_two_of_the_teachers_ddim_steps_end(name, parameterization, steps):
    trained = objective(ALL_PATHS[name], parameterization)
    net = Exact(trained)
    student = Progressive(
        objective=trained, teacher=Teacher(net=net, objective=trained, null=no_label(100)), steps=steps
    )
    x = normal()
    for i in range(1, steps + 1):
        t = torch.tensor(i / steps, dtype=torch.float64)
        s = torch.tensor((i - 1) / steps, dtype=torch.float64)
        walked = ddim(trained.denoiser(net, LABELS), trained.path, x, torch.stack([t, (t + s) / 2, s]))
        ends = student.target(x, t.expand(len(x)), LABELS, ONES)
        stepped = ddim(partial(said, ends), trained.path, x, torch.stack([t, s]))
        torch.testing.assert_close(stepped, walked, rtol=0, atol=1e-10)
        now = trained.path(t)
        torch.testing.assert_close(now.alpha * ends.x0 + now.sigma * ends.eps, x, rtol=0, atol=1e-10)


def test_progressives_loss_is_zero_for_the_network_that_makes_the_double_step():
    trained = objective(CosinePath(), "v", weighting=TruncatedSNR())
    teacher = Teacher(net=Exact(trained), objective=trained, null=no_label(100))
    student = Progressive(objective=trained, teacher=teacher, steps=4)
    drawn = student.times(SHAPE[0], torch.device("cpu"))
    assert set(drawn[:, 0].tolist()) <= {0.25, 0.5, 0.75, 1.0}

    def perfect(x_t, t, y):
        ends = student.target(x_t, drawn[:, 0], y, ONES)
        a, b = target_coefficients(trained.path(expand(drawn[:, 0], x_t)), "v")
        return a * ends.x0 + b * ends.eps

    loss, t = student.loss(perfect, normal(1), LABELS, drawn=drawn, eps=normal(2), batch=0)
    assert loss.max() < 1e-20
    assert torch.equal(t, drawn[:, 0])


def test_a_student_of_a_perfect_denoiser_is_perfect():
    """Of data that is a single point a step of any length lands on it, and so does the student's."""
    trained = objective(LinearPath(), "x0")
    point = normal(3)[:1]
    teacher = Teacher(net=_Says(point), objective=trained, null=None)
    student = Progressive(objective=trained, teacher=teacher, steps=2)
    for t in (0.5, 1.0):
        ends = student.target(normal(4), t * ONES, LABELS, ONES)
        torch.testing.assert_close(ends.x0, point.expand(SHAPE), rtol=0, atol=1e-12)


class _Says(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x_t, t, y):
        return self.what.expand_as(x_t)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_baked_in_is_guidance_applied(scale):
    trained = objective(CosinePath(), "v")
    net = Exact(trained)
    teacher = Teacher(net=net, objective=trained, null=no_label(100))
    student = Progressive(objective=trained, teacher=teacher, steps=2, guidance=scale)
    drawn = student.times(SHAPE[0], torch.device("cpu"))
    ends = student.target(normal(), ONES, LABELS, drawn[:, 1])
    guided = trained.denoiser(Guidance(scale=scale)(net, no_label(100)), LABELS)
    times = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)
    walked = ddim(guided, trained.path, normal(), times)
    torch.testing.assert_close(
        ddim(partial(said, ends), trained.path, normal(), times[::2]), walked, rtol=0, atol=1e-10
    )


def test_guidance_as_a_condition_reaches_teacher_and_student():
    trained = objective(CosinePath(), "v")
    net = Exact(trained)
    student = Progressive(
        objective=trained,
        teacher=Teacher(net=net, objective=trained, null=no_label(100)),
        steps=1,
        guidance=1.0,
        guidance_max=3.0,
    )
    drawn = student.times(SHAPE[0], torch.device("cpu"))
    scales = drawn[:, 1]
    assert scales.min() >= 1
    assert scales.max() <= 3
    assert scales.std() > 0.1
    told = []

    def student_net(x_t, t, condition):
        told.append(condition.w)
        return torch.zeros_like(x_t)

    student.loss(student_net, normal(1), LABELS, drawn=drawn, eps=normal(2), batch=0)
    assert torch.equal(told[0], scales)
    each = [
        student.target(normal(), ONES, LABELS, torch.full_like(ONES, float(scale))).x0[i]
        for i, scale in enumerate(scales)
    ]
    torch.testing.assert_close(student.target(normal(), ONES, LABELS, scales).x0, torch.stack(each))
