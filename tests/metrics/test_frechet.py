import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity.metric_fid as fidelity
from cleanfid import fid as clean
from torchmetrics.image.fid import _compute_fid

from ldm.metrics.features import Extractor
from ldm.metrics.frechet import distance_of_images, expected_bias, frechet_distance
from ldm.metrics.statistics import Moments, Statistics


class Flat(Extractor):
    num_features = 12

    def forward(self, image):
        return image.flatten(1).double()


def images(n, low, high, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, 3, 2, 2), generator=generator).to(torch.uint8)


def gaussian(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix


def statistics(features):
    moments = Moments(features.shape[1])
    for part in features.split(97):
        moments.update(part)
    return moments.statistics()


def test_equals_three_libraries_on_the_same_features():
    real, fake = gaussian(900, 40, 0), gaussian(700, 40, 1, scale=1.5, shift=0.2)
    ours = frechet_distance(statistics(real), statistics(fake))
    theirs = [{"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)} for x in (real, fake)]
    a, b = theirs
    assert ours == pytest.approx(fidelity.fid_statistics_to_metric(a, b, False)["frechet_inception_distance"], rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid calls scipy's sqrtm with an argument that goes
        assert ours == pytest.approx(clean.frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"]), rel=1e-6)
    moments = [torch.from_numpy(x) for side in theirs for x in (side["mu"], side["sigma"])]
    assert ours == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)


def test_is_the_closed_form_of_commuting_gaussians():
    """|m|^2 + sum (sqrt a - sqrt b)^2 for diagonal covariances a and b."""
    a, b = torch.tensor([1.0, 4.0, 0.0]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    m = torch.tensor([3.0, 0.0, 4.0]).double()
    one, two = (
        Statistics(count=None, mean=mean, covariance=v.diag(), features=None, card={})
        for mean, v in ((0 * m, a), (m, b))
    )
    assert frechet_distance(one, two) == pytest.approx(25 + 4 + 1 + 0.25, rel=1e-12)


def test_of_uint8_images():
    real, fake = images(600, 0, 255, 0), images(500, 40, 140, 1)
    a, b = (x.flatten(1).double().numpy() for x in (real, fake))
    c, d = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
    assert distance_of_images(Flat(), real.split(70), fake.split(64)) == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_features_are_no_trouble():
    """Covariances without full rank, where an iterated root fails or turns complex."""
    a, b = gaussian(30, 64, 0), gaussian(20, 64, 1)
    assert frechet_distance(statistics(a), statistics(a)) == pytest.approx(0, abs=1e-5)
    # the same in the span of all rows, where nothing is singular but the sets themselves
    basis = torch.linalg.qr(torch.cat([a - a.mean(0), b - b.mean(0), (a.mean(0) - b.mean(0))[None]]).T).Q
    inside = [x @ basis for x in (a, b)]
    expected = frechet_distance(*(statistics(x) for x in inside))
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-6)


def test_of_a_set_with_itself_is_zero_and_a_shift_counts_squared():
    real = images(400, 0, 200, 0)
    assert distance_of_images(Flat(), [real], [real]) == pytest.approx(0, abs=1e-6)
    assert distance_of_images(Flat(), [real], [real + 5]) == pytest.approx(12 * 25, rel=1e-6)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="needs two images a side, not 1"):
        distance_of_images(Flat(), [images(400, 0, 9, 0)], [images(1, 0, 9, 0)])


@pytest.mark.parametrize(
    ("n", "d", "draws"), [(300, 12, 300), (1500, 12, 300), (40, 60, 100), (2, 60, 100), (90, 60, 100)]
)
def test_the_expected_bias_is_that_of_gaussians(n, d, draws):
    """Also of fewer images than features."""
    generator = torch.Generator().manual_seed(3)
    values = torch.logspace(-3, 1, d, dtype=torch.float64) if n > d else torch.logspace(-1, 0, d, dtype=torch.float64)
    truth = Statistics(count=None, mean=torch.zeros(d).double(), covariance=values.diag(), features=None, card={})
    images = (torch.randn(n, d, generator=generator, dtype=torch.float64) * values.sqrt() for _ in range(draws))
    found = torch.tensor([frechet_distance(truth, statistics(x)) for x in images], dtype=torch.float64)
    expected, own = float(found.mean()), float(found.std())
    # four standard deviations, of the mean of these draws and of the function's own
    tolerance = 4 * own * (1 / draws + 1 / (1024 // d)) ** 0.5
    assert expected_bias(values.diag(), n) == pytest.approx(expected, abs=tolerance)
    assert tolerance < 0.3 * expected


def test_the_expected_bias_of_many_images_is_the_first_order_in_their_number():
    """(1 / N) (5 / 4 tr C + 1 / 2 sum_ij l_i l_j / (l_i + l_j)), by the second derivative at equal covariances."""
    values = torch.logspace(-1, 1, 100, dtype=torch.float64)
    pairs = values[:, None] * values / (values[:, None] + values)
    expected = float(1.25 * values.sum() + 0.5 * pairs.sum()) / 100_000
    assert expected_bias(values.diag(), 100_000) == pytest.approx(expected, rel=0.02)


def test_moments_of_two_ranks_are_those_of_one():
    x = gaussian(500, 8, 0)
    whole, parts = statistics(x), [Moments(8) for _ in range(2)]
    for moments, rows in zip(parts, (x[::2], x[1::2]), strict=True):
        moments.update(rows)
    parts[0].merge(parts[1])
    merged = parts[0].statistics()
    assert merged.count == 500
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, torch.from_numpy(np.cov(x.T.numpy())))
