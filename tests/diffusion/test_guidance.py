import pytest
import torch

from ldm.condition import Condition, no_label
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import LinearPath
from ldm.diffusion.times import Uniform
from ldm.diffusion.weighting import Unweighted

NULL = 10


def net(x_t, t, condition):
    y = Condition.of(condition).label
    return torch.sin(x_t * (y.reshape(-1, 1, 1, 1) + 1.0)) + t.reshape(-1, 1, 1, 1)


@pytest.fixture
def inputs():
    return torch.randn(4, 2, 3, 3), torch.full((4,), 0.6), torch.arange(4)


def branches(inputs):
    x, t, y = inputs
    return net(x, t, y), net(x, t, torch.full_like(y, NULL))


def test_guiding_the_output_guides_x0_and_eps(inputs):
    objective = Objective(
        path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform()
    )
    x, _, y = inputs
    t = torch.tensor(0.6)
    cond, uncond = (objective.denoiser(net, labels)(x, t) for labels in (y, torch.full_like(y, NULL)))
    guided = objective.denoiser(Guidance(scale=3.0)(net, no_label(NULL)), y)(x, t)
    torch.testing.assert_close(guided.x0, uncond.x0 + 3.0 * (cond.x0 - uncond.x0))
    torch.testing.assert_close(guided.eps, uncond.eps + 3.0 * (cond.eps - uncond.eps))


def test_both_branches_in_one_call_and_one_branch_outside_the_interval(inputs):
    sizes = []

    def counting(x_t, t, y):
        sizes.append(len(x_t))
        return net(x_t, t, y)

    guided = Guidance(scale=2.0, interval=(0.3, 0.7))(counting, no_label(NULL))
    x, t, y = inputs
    assert not torch.allclose(guided(x, t, y), net(x, t, y))
    for outside in (0.2, 0.8):
        torch.testing.assert_close(guided(x, t * 0 + outside, y), net(x, t * 0 + outside, y))
    assert sizes == [8, 4, 4]


def test_autoguidance_extrapolates_from_the_weaker_network(inputs):
    def weak(x_t, t, y):
        return 0.5 * net(x_t, t, y)

    guided = Guidance(scale=2.0, weak=weak)(net, no_label(NULL))(*inputs)
    torch.testing.assert_close(guided, weak(*inputs) + 2.0 * (net(*inputs) - weak(*inputs)))


def test_rescaling_by_hand(inputs):
    """Lin et al. 2024, eq. 14-16, a sample at a time."""
    guided = Guidance(scale=5.0, rescale=0.7)(net, no_label(NULL))(*inputs)
    for cond, uncond, found in zip(*branches(inputs), guided, strict=True):
        cfg = uncond + 5.0 * (cond - uncond)
        rescaled = cfg * cond.std() / cfg.std()
        torch.testing.assert_close(found, 0.7 * rescaled + 0.3 * cfg)


def test_scale_one_is_the_conditional_network():
    assert Guidance(scale=1.0)(net, no_label(NULL)) is net


@pytest.mark.parametrize(
    ("options", "said"), [({"interval": (0.8, 0.2)}, "guidance_interval"), ({"rescale": 1.5}, "guidance_rescale")]
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Guidance(scale=2.0, **options)


def test_noise_belongs_to_the_index():
    shape, whole = (2, 3, 3), IndexedNoise(7, range(6))
    first, second = whole.draw(shape), whole(torch.empty(6, *shape))
    part = IndexedNoise(7, [4, 1])
    torch.testing.assert_close(part.draw(shape), first[[4, 1]])
    torch.testing.assert_close(part(torch.empty(2, *shape)), second[[4, 1]])
    assert not torch.equal(IndexedNoise(8, [4]).draw(shape), first[[4]])
