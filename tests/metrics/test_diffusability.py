"""Figures of latents against closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm.metrics.diffusability import (
    CHANGES,
    change_error,
    channel_spectrum,
    effective_channels,
    high_share,
    linear_probe,
    noise_error,
    power_spectrum,
)


def test_the_powers_add_up_to_the_mean_square():
    z = torch.randn(5, 3, 6, 8)
    power = power_spectrum(z)
    assert float(power.sum()) == pytest.approx(float(z.double().square().mean()))


@pytest.mark.parametrize("cycles", [1, 3])
def test_a_wave_has_its_frequency_alone(cycles):
    x = torch.arange(8.0) / 8
    wave = torch.cos(2 * np.pi * cycles * x).expand(1, 1, 8, 8)
    power = power_spectrum(wave)
    assert float(power[cycles]) == pytest.approx(0.5)
    assert float(power.sum() - power[cycles]) == pytest.approx(0, abs=1e-12)
    assert high_share(power, 8) == pytest.approx(float(cycles > 2))


def test_white_noise_is_as_strong_at_every_place_of_its_transform():
    share = high_share(power_spectrum(torch.randn(2000, 1, 8, 8)), 8)
    y, x = np.meshgrid(np.fft.fftfreq(8, 1 / 8), np.fft.fftfreq(8, 1 / 8))
    radius = np.round(np.hypot(y, x))
    assert share == pytest.approx((radius > 2).sum() / (radius > 0).sum(), rel=0.01)


def test_channels_have_the_eigenvalues_of_their_covariance():
    z = torch.einsum("cd,ndhw->nchw", torch.tensor([[1.0, 0.5, 0], [0, 2, 0], [1, 1, 0.1]]), torch.randn(40, 3, 4, 4))
    rows = z.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    wanted = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    np.testing.assert_allclose(channel_spectrum(z).numpy(), wanted, rtol=1e-6)


def test_effective_channels_count_those_that_are_alike():
    assert effective_channels(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_channels(torch.tensor([5.0, 0.0])) == pytest.approx(1)


def enlarged(z):
    return 3 * F.interpolate(z[:, :3], scale_factor=2, mode="nearest")


@pytest.mark.parametrize("name", ["a quarter turn", "mirrored"])
def test_a_decoder_that_commutes_has_no_error(name):
    error, spread = change_error(enlarged, torch.randn(4, 3, 4, 4), CHANGES[name])
    assert float(error) == pytest.approx(0, abs=1e-9)
    assert float(spread) > 0


def test_a_decoder_that_does_not_has_that_of_its_pictures():
    ramp = torch.linspace(-1, 1, 8).expand(1, 3, 8, 8)
    error, spread = change_error(lambda z: ramp.expand(len(z), 3, 8, 8), torch.zeros(2, 1, 4, 4), CHANGES["mirrored"])
    assert float(error / spread) == pytest.approx(4)  # it is minus what it should be


def test_half_of_an_odd_side_is_compared_at_its_own_size():
    error, spread = change_error(enlarged, torch.randn(4, 3, 7, 7), CHANGES["half the size"])
    assert 0 < float(error / spread) < 2


def test_noise_counts_by_what_the_decoder_makes_of_it():
    z = torch.randn(300, 3, 4, 4)
    error, spread = noise_error(enlarged, z, z + 0.1 * torch.randn_like(z))
    assert float((error / spread).sqrt()) == pytest.approx(0.1, rel=0.05)


def test_a_probe_reads_what_is_linear_and_no_noise():
    labels = torch.arange(600) % 3
    z = torch.randn(600, 2, 4, 4)
    assert linear_probe(z[:400], labels[:400], z[400:], labels[400:]) == pytest.approx(1 / 3, abs=0.12)
    z[:, 0] += 3.0 * labels[:, None, None]
    assert linear_probe(z[:400], labels[:400], z[400:], labels[400:]) > 0.98
