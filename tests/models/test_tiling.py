from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from ldm.models.autoencoder import Autoencoder
from ldm.models.tiling import positions, tiled


def test_positions_cover_and_overlap():
    for length in range(8, 60):
        starts = positions(length, 8, 3)
        assert starts[0] == 0 and starts[-1] == length - 8
        assert all(0 < b - a <= 5 for a, b in pairwise(starts))


@pytest.mark.parametrize("scale", [4, 1, 0.25])
def test_a_local_function_is_exact(scale):
    """Nothing here sees further than the pixel itself, so that tiles can't be told from the whole."""

    def function(x):
        return F.interpolate(torch.sin(3 * x), scale_factor=scale, mode="nearest") if scale != 1 else torch.sin(3 * x)

    x = torch.randn(2, 3, 40, 56)
    torch.testing.assert_close(tiled(function, x, tile=16, overlap=8), function(x))


def test_seams_are_blended():
    """Each tile gets a level of its own; without blending, neighbours would differ by a step of 1."""
    levels = iter(range(100))
    blended = tiled(lambda x: x * 0 + next(levels), torch.zeros(1, 1, 16, 40), tile=16, overlap=8)
    assert blended.diff(dim=-1).abs().max() <= 1 / 7


def test_an_autoencoder_is_close_to_the_whole():
    model = Autoencoder(channels=16, channel_mult=[1, 2, 4], num_res_blocks=1, latent_channels=3).eval()
    z = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        whole, parts = model.decode(z), tiled(model.decode, z, tile=16, overlap=8)
    assert parts.shape == whole.shape
    assert (parts - whole).abs().mean() < 0.3 * whole.std()  # its norms and attention see one tile each


def test_overlap_must_fit():
    with pytest.raises(ValueError, match="can't overlap"):
        tiled(lambda x: x, torch.zeros(1, 1, 8, 8), tile=4, overlap=4)
