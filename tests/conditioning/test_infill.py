"""Infilling against a Gaussian, of which every part given the rest is known in closed form."""

import pytest
import torch
from torch import nn

from ldm.condition import labelled
from ldm.conditioning import masks
from ldm.conditioning.labels import Labels
from ldm.conditioning.masked import Infill, hidden_cells, known_of
from ldm.diffusion.objective import Objective, mean_square
from ldm.diffusion.path import CosinePath, LinearPath
from ldm.diffusion.repaint import repaint
from ldm.diffusion.samplers import heun
from ldm.diffusion.times import Uniform, uniform_grid
from ldm.diffusion.weighting import Unweighted
from ldm.generate.infilling import continued

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)  # C, h, w
MEAN = torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=torch.float64)
FACTOR = torch.tensor(
    [[1.0, 0, 0, 0], [0.8, 0.6, 0, 0], [-0.5, 0.4, 0.7, 0], [0.3, -0.6, 0.5, 0.5]], dtype=torch.float64
)
COVARIANCE = FACTOR @ FACTOR.T
HIDDEN = torch.tensor([False, True, False, True])
KNOWN = torch.tensor([1.2, 0.0, -0.3, 0.0], dtype=torch.float64)


def conditional(known):
    """Mean and covariance of the hidden coordinates given the known ones."""
    gain = COVARIANCE[HIDDEN][:, ~HIDDEN] @ torch.linalg.inv(COVARIANCE[~HIDDEN][:, ~HIDDEN])
    mean = MEAN[HIDDEN] + gain @ (known - MEAN)[~HIDDEN]
    return mean, COVARIANCE[HIDDEN][:, HIDDEN] - gain @ COVARIANCE[~HIDDEN][:, HIDDEN]


def posterior(x_t, c, mean, covariance):
    """E[x0 | x_t] of N(mean, covariance), x_t [B, d]."""
    gain = c.alpha * covariance @ torch.linalg.inv(c.alpha**2 * covariance + c.sigma**2 * torch.eye(len(mean)).double())
    return mean + (x_t - c.alpha * mean) @ gain.T


class Exact(nn.Module):
    """Says E[x0 | x_t, what it is told]; without a condition, E[x0 | x_t]."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x_t, t, condition):
        c, flat = self.path(t[0]), x_t.flatten(1)
        if condition.concat is None or condition.concat[:, 0].all():
            return posterior(flat, c, MEAN, COVARIANCE).reshape(x_t.shape)
        hidden, known = condition.concat[:, 0].flatten(1), condition.concat[:, 1].flatten(1)
        assert torch.equal(hidden[0].bool(), HIDDEN)
        x0 = known.clone()
        x0[:, HIDDEN] = posterior(flat[:, HIDDEN], c, *conditional(known[0]))
        return x0.reshape(x_t.shape)


def learned(path):
    return Objective(path=path, parameterization="x0", weighting=Unweighted(), time_sampler=Uniform())


def check_moments(samples, tolerance):
    found = samples.flatten(1)[:, HIDDEN]
    mean, covariance = conditional(KNOWN)
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.cov(found.T), covariance, rtol=0, atol=tolerance)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()], ids=["linear", "cosine"])
def test_what_is_infilled_has_the_conditional_mean_and_covariance(path):
    n = 20_000
    hidden = HIDDEN.double().reshape(1, *SHAPE).expand(n, -1, -1, -1)
    condition = known_of(torch.zeros(n, dtype=torch.long), KNOWN.reshape(1, *SHAPE).expand(n, -1, -1, -1), hidden)
    denoise = learned(path).denoiser(Exact(path), condition)
    noise = torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = heun(denoise, path, noise, uniform_grid(path, 40))
    check_moments(samples, 0.03)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()], ids=["linear", "cosine"])
def test_a_model_that_never_saw_a_mask_is_led_there(path):
    torch.manual_seed(0)
    n = 8_000
    hidden, known = HIDDEN.double().reshape(1, *SHAPE), KNOWN.reshape(1, *SHAPE).expand(n, -1, -1, -1)
    denoise = learned(path).denoiser(Exact(path), torch.zeros(n, dtype=torch.long))
    noise = torch.randn(n, *SHAPE, dtype=torch.float64)
    times = uniform_grid(path, 50)
    samples = repaint(denoise, path, noise, times, known=known, hidden=hidden, resample=10)
    torch.testing.assert_close(samples.flatten(1)[:, ~HIDDEN], known.flatten(1)[:, ~HIDDEN])
    check_moments(samples, 0.1)
    # replacing alone, without going back, leaves the hidden part ignorant of the known
    once = repaint(denoise, path, noise, times, known=known, hidden=hidden, resample=1).flatten(1)[:, HIDDEN]
    mean, _ = conditional(KNOWN)
    assert (once.mean(0) - mean).norm() > 1.5 * (samples.flatten(1)[:, HIDDEN].mean(0) - mean).norm()


@pytest.mark.parametrize("loss", ["hidden", "everywhere"])
def test_errors_count_where_it_says(loss):
    kind = Infill(loss=loss, whole=0.0)
    x0, labels = torch.randn(64, 3, 8, 8), torch.randint(5, (64,))
    null = kind.null(5, (3, 8, 8))
    condition, where = kind.condition(x0, labels, null, {}, *kind.draw(64, (3, 8, 8), CPU))
    hidden = condition.concat[:, :1]
    assert torch.equal(condition.concat[:, 1:], x0 * (1 - hidden))
    output = torch.randn(64, 3, 8, 8, requires_grad=True)
    mean_square(output - x0, where).sum().backward()
    counts = output.grad.abs().sum(1, keepdim=True) > 0
    assert torch.equal(counts, hidden.bool() if loss == "hidden" else torch.ones_like(counts))
    # the mean over the places that count
    expected = [((output - x0)[i] ** 2)[:, counts[i, 0]].mean() for i in range(64)]
    torch.testing.assert_close(mean_square(output - x0, where), torch.stack(expected))


def test_labels_are_left_out_at_the_given_rate_and_kinds_drawn_at_theirs():
    torch.manual_seed(0)
    kind = Infill(boxes=1, brushes=0, halves=1, whole=2, unlabelled=0.3)
    hidden, uniform = kind.draw(20_000, (3, 8, 8), CPU)
    x0, labels = torch.randn(20_000, 3, 8, 8), torch.zeros(20_000, dtype=torch.long)
    condition, _ = kind.condition(x0, labels, kind.null(5, (3, 8, 8)), {}, hidden, uniform)
    assert (condition.label == 5).float().mean() == pytest.approx(0.3, abs=0.01)
    assert hidden.flatten(1).all(1).float().mean() == pytest.approx(0.5, abs=0.01)
    quarter = (hidden.flatten(1).mean(1) == 0.5).float().mean()
    assert quarter > 0.24  # halves, and some boxes


@pytest.mark.parametrize("make", [masks.boxes, masks.brushes, masks.halves])
@pytest.mark.parametrize("size", [(8, 8), (4, 6), (32, 32)])
def test_masks_hide_something_and_not_all(make, size):
    torch.manual_seed(0)
    hidden = make(2000, *size, CPU)
    assert hidden.shape == (2000, 1, *size)
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    share = hidden.flatten(1).mean(1)
    assert share.min() > 0
    assert share.max() < 1
    assert hidden.mean(0).min() > 0.02  # every place is hidden at times


def test_brushes_are_strokes_as_wide_as_said():
    torch.manual_seed(0)
    hidden = masks.brushes(200, 64, 64, CPU)
    area = hidden.flatten(1).sum(1)
    assert (area > 3.1 * (0.06 * 64) ** 2).all()  # at least a disc


def test_nothing_said_is_all_hidden_and_a_label_alone_too():
    kind = Infill()
    null = kind.null(5, (3, 8, 8))
    assert null.concat[:, 0].all()
    assert not null.concat[:, 1:].any()
    condition = labelled(torch.tensor([2, 4]), null)
    assert torch.equal(condition.concat[1], null.concat[0])
    assert kind.network((3, 8, 8)) == {"concat_channels": 4}
    assert Labels().network((3, 8, 8)) == {}


def test_cells_with_a_hidden_pixel_are_hidden():
    hidden = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    hidden[..., 5, 9] = True
    cells = hidden_cells(hidden, 4)
    assert cells.nonzero().tolist() == [[0, 0, 1, 2]]
    assert hidden_cells(hidden, 4, grow=1).sum() == 9


def test_nothing_to_hide_is_refused():
    with pytest.raises(ValueError, match="nothing would be hidden"):
        Infill(boxes=0, brushes=0, halves=0, whole=0)


def test_what_is_known_goes_on_into_what_is_hidden():
    images = torch.randint(256, (3, 3, 9, 12), dtype=torch.uint8)
    hidden = torch.zeros(3, 1, 9, 12, dtype=torch.bool)
    hidden[0, :, :, 5:] = True
    hidden[1] = True  # of all of it, nothing is known
    images[0, :, :, 4] = 200
    filled = continued(images, hidden)
    assert torch.equal(filled[~hidden.expand_as(filled)], images[~hidden.expand_as(images)])
    assert (filled[0, :, :, 5:] == 200).all()
    assert (filled[1] == 128).all()
    other = torch.where(hidden, 255 - images, images)
    assert torch.equal(continued(other, hidden), filled)  # nothing of it is seen
