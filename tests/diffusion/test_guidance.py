import torch

from ldm.diffusion.guidance import classifier_free, drop_labels
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import LinearPath
from ldm.diffusion.times import Uniform
from ldm.diffusion.weighting import Unweighted

NULL = 10


def net(x_t, t, y):
    return x_t * (y.reshape(-1, 1, 1, 1) + 1.0) + t.reshape(-1, 1, 1, 1)


def test_labels_are_dropped_at_the_given_rate():
    y = torch.arange(10).repeat(5000)
    dropped = drop_labels(y, 0.1, NULL)
    assert abs((dropped == NULL).float().mean() - 0.1) < 0.005
    assert torch.equal(dropped[dropped != NULL], y[dropped != NULL])
    assert torch.equal(drop_labels(y, 0.0, NULL), y)
    assert (drop_labels(y, 1.0, NULL) == NULL).all()


def test_guiding_the_output_guides_x0_and_eps():
    objective = Objective(
        path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform()
    )
    x, y, t = torch.randn(4, 2, 3, 3), torch.arange(4), torch.tensor(0.6)
    cond, uncond = (objective.denoiser(net, labels)(x, t) for labels in (y, torch.full_like(y, NULL)))
    guided = objective.denoiser(classifier_free(net, 3.0, NULL), y)(x, t)
    torch.testing.assert_close(guided.x0, uncond.x0 + 3.0 * (cond.x0 - uncond.x0))
    torch.testing.assert_close(guided.eps, uncond.eps + 3.0 * (cond.eps - uncond.eps))


def test_scale_one_is_the_conditional_network():
    assert classifier_free(net, 1.0, NULL) is net


def test_noise_belongs_to_the_index():
    shape, whole = (2, 3, 3), IndexedNoise(7, range(6))
    first, second = whole.draw(shape), whole(torch.empty(6, *shape))
    part = IndexedNoise(7, [4, 1])
    torch.testing.assert_close(part.draw(shape), first[[4, 1]])
    torch.testing.assert_close(part(torch.empty(2, *shape)), second[[4, 1]])
    assert not torch.equal(IndexedNoise(8, [4]).draw(shape), first[[4]])
