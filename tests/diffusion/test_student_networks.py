"""What students ask of networks and samplers: derivatives, a second time, jumps; and what is refused."""

from functools import partial

import pytest
import torch
from support.closed_forms import exact_denoiser
from support.students import GAUSSIAN, LABELS, SHAPE, Exact, consistency_net, normal, objective, small_net

from ldm.condition import Condition, no_label
from ldm.diffusion.consistency import Consistency
from ldm.diffusion.derivative import along, value_along
from ldm.diffusion.meanflow import MeanFlow
from ldm.diffusion.objective import expand
from ldm.diffusion.parameterization import determinant, target_coefficients
from ldm.diffusion.path import CosinePath, LinearPath
from ldm.diffusion.progressive import Progressive
from ldm.diffusion.samplers import ddim, jump
from ldm.diffusion.student import Teacher
from ldm.diffusion.times import uniform_grid
from ldm.diffusion.weighting import Adaptive, TruncatedSNR
from ldm.models.unet import UNet


@pytest.mark.parametrize("attention", [{}, {"context_dim": 6, "label_as": "context", "qk_norm": True}])
def test_the_derivative_of_a_network_is_autograds_and_the_differences(attention):
    net = small_net(second_time=True, **attention).eval()
    y, t, s = LABELS % 3, torch.linspace(0.2, 0.9, SHAPE[0]), torch.zeros(SHAPE[0])
    x, dx, dt = normal().float(), normal(1).float(), torch.full((SHAPE[0],), 0.01)
    function = lambda x, t: net(x, t, Condition(y, s=s))  # noqa: E731
    value, exact = value_along(function, x, t, dx, dt, "exact")
    difference = along(function, x, t, dx, dt, 0.005)
    torch.testing.assert_close(value, function(x, t), rtol=1e-4, atol=1e-5)
    _, oracle = torch.autograd.functional.jvp(_plain(function), (x, t), (dx, dt))  # by reverse mode, twice
    torch.testing.assert_close(exact, oracle, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(difference, exact, rtol=1e-2, atol=1e-2)
    assert not exact.requires_grad


def test_a_difference_stays_where_networks_are_trained():
    """Of t^2 it is the mean slope over what lies in [0, 1] of t - h to t + h."""
    t, seen = torch.tensor([0.0, 0.005, 0.5, 1.0], dtype=torch.float64), []

    def square(x, t):
        seen.append(t)
        return expand(t, x) ** 2 + 0 * x

    slope = along(square, torch.zeros(4, 1, 1, 1, dtype=torch.float64), t, torch.zeros(4, 1, 1, 1), 1 + 0 * t, 0.02)
    torch.testing.assert_close(slope.flatten(), torch.tensor([0.02, 0.025, 1.0, 1.98], dtype=torch.float64))
    assert all(((t >= 0) & (t <= 1)).all() for t in seen)


def _plain(function):
    """Attention's fused kernels cannot be differentiated twice."""

    def called(*inputs):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return function(*inputs)

    return called


def test_a_loaded_teacher_is_itself_to_the_bit():
    plain = small_net().eval()
    student = UNet(
        in_channels=2, num_classes=3, model_channels=8, channel_mult=[1], num_res_blocks=1, attention_resolutions=[1],
        head_channels=8, second_time=True, takes_guidance=True,
    ).eval()  # fmt: skip
    further = {name: tensor for name, tensor in student.state_dict().items() if name not in plain.state_dict()}
    assert {name.partition(".")[0] for name in further} == {"second_embed", "guidance_embed"}
    student.load_state_dict(further | plain.state_dict())
    x, t, y = normal().float(), torch.rand(SHAPE[0]), LABELS % 3
    assert torch.equal(student(x, t, Condition(y, s=t / 3, w=2 * torch.ones_like(t))), plain(x, t, y))
    assert torch.equal(student(x, t, y), plain(x, t, y))
    with pytest.raises(ValueError, match=r"net.second_time=true"):
        plain(x, t, Condition(y, s=t))


TAUGHT = Teacher(net=Exact(objective()), objective=objective(), null=no_label(100))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MeanFlow(objective=objective()), "objective.average=true"),
        (lambda: MeanFlow(objective=objective(average=True), mix=1.0), "mix=1"),
        (lambda: MeanFlow(objective=objective(average=True), guidance=2.0), "wants null="),
        (lambda: Consistency(objective=objective()), "cosine path"),
        (lambda: Consistency(objective=objective(CosinePath(), "v"), guidance=2.0), "pass teacher="),
        (lambda: objective(CosinePath(), "v", average=True), "parameterization=velocity"),
        (partial(Progressive, objective=objective(), teacher=TAUGHT, steps=0), "steps"),
        (
            partial(Progressive, objective=objective(), teacher=TAUGHT, steps=2, guidance=2.0, guidance_max=1.0),
            "guidance_max",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_weightings_of_students():
    error, snr = torch.tensor([0.1, 2.0], requires_grad=True), torch.tensor([0.01, 4.0])
    c = CosinePath()(torch.atan(snr.rsqrt()) * 2 / torch.pi)
    a, b = target_coefficients(c, "v")
    gain = (c.sigma / determinant(c, a, b)) ** 2
    loss = TruncatedSNR()(error, snr, gain)  # of v: max(snr, 1) / (1 + snr)
    torch.testing.assert_close(loss, torch.tensor([1 / 1.01, 4 / 5]) * error)
    adaptive = Adaptive(power=1.0, floor=0.1)(error, snr, gain)
    torch.testing.assert_close(adaptive, error / (error + 0.1))
    (gradient,) = torch.autograd.grad(adaptive.sum(), error)
    torch.testing.assert_close(gradient, 1 / (error.detach() + 0.1))


def test_renoised_jumps_have_the_distribution_of_the_data():
    """Multistep consistency sampling by the exact consistency function of a Gaussian."""
    learned = objective(CosinePath(), "v")
    x = torch.randn(20_000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(len(x), dtype=torch.long)
    walk = partial(jump, learned.denoiser(consistency_net, y), CosinePath(), x, uniform_grid(CosinePath(), 3))
    generator = torch.Generator().manual_seed(1)
    x0 = walk(renoise=True, noise=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator))
    assert float(x0.mean()) == pytest.approx(GAUSSIAN.mean, abs=0.02)
    assert float(x0.std()) == pytest.approx(GAUSSIAN.std, rel=0.02)
    assert not torch.allclose(x0, walk())
    assert torch.equal(
        walk(), ddim(learned.denoiser(consistency_net, y), CosinePath(), x, uniform_grid(CosinePath(), 3))
    )


def test_jumps_of_a_network_without_a_second_time_are_ddims(mixture):
    path = LinearPath()
    x = torch.randn(5, 2, dtype=torch.float64)
    denoise = exact_denoiser(path, mixture)
    both = lambda x_t, t, s=None: denoise(x_t, t)  # noqa: E731
    torch.testing.assert_close(
        jump(both, path, x, uniform_grid(path, 4)), ddim(denoise, path, x, uniform_grid(path, 4))
    )
