"""Super-resolution against a Gaussian: the large picture given the small one is known in closed form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ldm.conditioning.labels import Kept
from ldm.conditioning.low_resolution import Upscale, noised
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import CosinePath, LinearPath
from ldm.diffusion.samplers import heun
from ldm.diffusion.times import Uniform, uniform_grid
from ldm.diffusion.weighting import Unweighted
from ldm.images import enlarged, shrunk

KIND = Upscale(factor=2, per_cell=1.0, noise=0.5)  # a latent of 2 x 2 cells, and a small picture of as many pixels
SMALL = torch.tensor([[0.5, -0.2], [0.1, 0.8]], dtype=torch.float64)
COVARIANCE = torch.eye(4, dtype=torch.float64) + 0.5
SEEN = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)  # the small picture's rows: means
SPREAD = 0.1  # of what is seen, besides the noise that is told


def given(small, level):
    """Mean and covariance of x0 ~ N(0, COVARIANCE) given its row means, as noisy as is told: y = sqrt(1 - l^2) SEEN x0
    + (l + SPREAD) eps."""
    share = (1 - level**2) ** 0.5
    seen, noise = share * SEEN, (level + SPREAD) ** 2 * torch.eye(2, dtype=torch.float64)
    gain = COVARIANCE @ seen.T @ torch.linalg.inv(seen @ COVARIANCE @ seen.T + noise)
    return gain @ small, COVARIANCE - gain @ seen @ COVARIANCE


class Exact(nn.Module):
    """Says E[x0 | x_t, the small picture, its level], which it reads off what stands beside x_t."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x_t, t, condition):
        level, small = float(condition.concat[0, 0, 0, 0]), condition.concat[0, 1, :, 0]
        mean, covariance = given(small, level)
        c = self.path(t[0])
        gain = c.alpha * covariance @ torch.linalg.inv(c.alpha**2 * covariance + c.sigma**2 * torch.eye(4).double())
        return (mean + (x_t.flatten(1) - c.alpha * mean) @ gain.T).reshape(x_t.shape)


@pytest.mark.parametrize("level", [0.0, 0.4])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath()], ids=["linear", "cosine"])
def test_what_is_upscaled_has_the_conditional_mean_and_covariance(path, level):
    n = 20_000
    x = SMALL[:, :1].reshape(1, 1, 2, 1).expand(n, 3, 2, 2)
    condition = KIND.small(torch.zeros(n, dtype=torch.long), x, torch.full((n,), level, dtype=torch.float64))
    learned = Objective(path=path, parameterization="x0", weighting=Unweighted(), time_sampler=Uniform())
    noise = torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = heun(learned.denoiser(Exact(path), condition), path, noise, uniform_grid(path, 40)).flatten(1)
    mean, covariance = given(SMALL[:, 0], level)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(samples.T), covariance, rtol=0, atol=0.04)


@pytest.mark.parametrize(("per_cell", "side"), [(2.0, 16), (1.0, 8), (0.5, 4)])
def test_the_small_picture_lies_on_the_latents_cells(per_cell, side):
    kind = Upscale(factor=2, per_cell=per_cell, noise=0.0)
    x = torch.randn(3, 3, side, side)
    condition = kind.small(torch.zeros(3).long(), x, torch.tensor([0.0, 0.2, 0.4]))
    assert list(condition.concat.shape) == [3, kind.network((4, 8, 8))["concat_channels"], 8, 8]
    assert torch.equal(condition.concat[:, 0, 0, 0], torch.tensor([0.0, 0.2, 0.4]))
    cells = condition.concat[:, 1:]
    if per_cell == 2:  # the pixels of a cell are its channels
        assert torch.equal(cells[0, :4, 3, 5], x[0, 0, 6:8, 10:12].flatten())
    else:
        assert torch.allclose(F.adaptive_avg_pool2d(cells, 2), F.adaptive_avg_pool2d(x, 2), atol=0.3)
    assert kind.small_size((4, 8, 8)) == (side, side)
    assert kind.small_size((4, 16, 8)) == (2 * side, side)


def test_noise_keeps_the_variance_and_is_of_the_level_that_is_told():
    torch.manual_seed(0)
    kind = Upscale(factor=2, per_cell=1.0, noise=0.8, unlabelled=0.25)
    x0, label = torch.zeros(20_000, 4, 4, 4), torch.zeros(20_000).long()
    low = torch.full((20_000, 3, 4, 4), 255, dtype=torch.uint8)  # of which to_x makes 1
    null = kind.null(5, (4, 4, 4))
    condition, where = kind.condition(x0, label, null, {"low": low}, *kind.draw(20_000, (4, 4, 4), torch.device("cpu")))
    assert where is None
    level, small = condition.concat[:, 0, 0, 0], condition.concat[:, 1:]
    assert level.max() < 0.8 < 2.1 * level.mean()
    residual = small - (1 - level.view(-1, 1, 1, 1) ** 2).sqrt()
    slope = (residual.flatten(1).std(1) * level).sum() / level.square().sum()
    assert slope == pytest.approx(1.0, abs=0.01)
    assert (condition.label == 5).float().mean() == pytest.approx(0.25, abs=0.01)
    x = torch.randn(9, 3, 50, 50)
    assert noised(x, torch.rand(9), torch.randn_like(x)).std() == pytest.approx(1.0, abs=0.01)


def test_what_the_latents_lack_is_said():
    def kept(resolution, side):
        return Kept(
            place="runs/latents", captioned=0, captions=list, text_encoder=None, low_resolution=side,
            resolution=resolution, latent_size=8,
        )  # fmt: skip

    assert Upscale(factor=2).learned(kept(32, 16)) == {"per_cell": 2.0}
    with pytest.raises(ValueError, match="low_resolution=16"):
        Upscale(factor=2).learned(kept(32, None))
    with pytest.raises(ValueError, match="of a multiple of 3"):
        Upscale(factor=3).learned(kept(32, 16))


def test_pictures_are_shrunk_as_pillow_does():
    image = torch.randint(256, (3, 32, 48), dtype=torch.uint8)
    theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((24, 16), Image.Resampling.BICUBIC)
    ours = shrunk(image, 16).permute(1, 2, 0).numpy().astype(int)
    apart = abs(ours - np.asarray(theirs).astype(int))
    assert apart.max() <= 2  # Pillow rounds after each of two passes
    assert apart.mean() < 0.5
    assert enlarged(image, 2).shape == (3, 64, 96)
