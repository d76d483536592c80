import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from cleanfid import fid as clean
from prdc import compute_prdc
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.inception import InceptionScore

from ldm.metrics.collect import sampling
from ldm.metrics.distribution import inception_score, kernel_distance, neighbourhoods
from ldm.metrics.neighbours import Neighbours
from ldm.metrics.statistics import Subset, pixel_hashes


def normal(n, d, seed, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbourhoods_equal_the_authors_code(k, capsys):
    real, fake = normal(1300, 6, 0), normal(1100, 6, 1, scale=0.8, shift=0.3)
    ours = neighbourhoods(real, fake, k)
    theirs = compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    capsys.readouterr()  # it prints
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-12), name
    precision, recall = calculate_precision_recall_full(fake.double(), real.double(), neighborhood=k)
    assert (ours["precision"], ours["recall"]) == pytest.approx((precision, recall), abs=1e-6)


def test_neighbourhoods_of_a_set_with_itself_and_of_sets_apart():
    x = normal(200, 3, 0)
    same = neighbourhoods(x, x.clone(), 5)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["density"] == pytest.approx(6 / 5)  # the image itself, and the five whose balls just reach, on average
    assert set(neighbourhoods(x, x + 100, 5).values()) == {0}
    with pytest.raises(ValueError, match="neighbours=5 needs more images a side than 200 and 5"):
        neighbourhoods(x, x[:5], 5)


def test_kernel_distance_equals_clean_fids_where_no_subset_is_drawn():
    real, fake = normal(500, 20, 0), normal(500, 20, 1, shift=0.2)
    ours = kernel_distance(real, fake, seed=0, subsets=2, most=500)
    theirs = clean.kernel_distance(real.double().numpy(), fake.double().numpy(), num_subsets=2, max_subset_size=500)
    assert ours["value"] == pytest.approx(theirs, rel=1e-6)
    assert ours["std"] == pytest.approx(0, abs=1e-9)


def test_inception_score_equals_torchmetrics_and_closed_forms():
    logits = normal(400, 10, 0, scale=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of memory, and of a spread over one split
        metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
        metric.features = [logits]
        theirs = float(metric.compute()[0])
    assert inception_score(logits, seed=0, splits=1)["value"] == pytest.approx(theirs, rel=1e-5)
    sure = 1000 * torch.eye(10).repeat(20, 1)
    assert inception_score(sure, seed=0, splits=1)["value"] == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(50, 10), seed=0)["value"] == pytest.approx(1, rel=1e-9)


def test_copies_are_told_from_new_samples_and_drawn():
    train, held_out, new = normal(2000, 4, 0), normal(400, 4, 1), normal(400, 4, 2)
    copied = train[:400] + 1e-3 * normal(400, 4, 3)
    image = torch.arange(2000)[:, None, None, None].remainder(256).expand(-1, 3, 2, 2).to(torch.uint8)
    shown = image[:3]

    def look(samples):
        ranks = [Neighbours(samples, held_out, shown, most=2) for _ in range(2)]
        for i, rank in enumerate(ranks):
            for part in torch.arange(i, 2000, 2).split(300):
                rank.update(train[part], image[part])
        return ranks[0].merge(ranks[1])

    assert look(copied).compute()["value"] > 0.999
    assert look(new).compute()["value"] == pytest.approx(0.5, abs=0.08)  # four standard deviations
    found = look(copied)
    nearest = torch.cdist(copied.double(), train.double())
    np.testing.assert_allclose(found.nearest[:400], nearest.amin(1), rtol=1e-6)
    rows, columns = found.rows()
    assert (len(rows), columns) == (9, 3)
    wanted = nearest[:3].argsort(1)[:, :2]
    assert torch.equal(rows.view(3, 3, -1)[:, 1:, 0], image[wanted][..., 0, 0, 0])
    assert torch.equal(rows.view(3, 3, -1)[:, 0, 0], shown[:, 0, 0, 0])


def test_a_subset_is_even_over_classes_in_turn_and_the_same_for_all_ranks():
    rows = normal(5000, 16, 0)
    whole, ranks = Subset(1000), [Subset(1000) for _ in range(3)]
    keys = pixel_hashes(torch.arange(5000 * 4).view(torch.uint8).reshape(5000, 1, 4, 8))
    for part, own in zip(rows.split(64), keys.split(64), strict=True):
        whole.add(own, part)
    for i, subset in enumerate(ranks):
        subset.add(keys[i::3], rows[i::3])
    together = Subset(1000)
    for subset in ranks:
        together.add(subset.settle().keys, subset.rows)
    assert torch.equal(whole.take(), together.take())
    assert len(whole.take()) == 1000
    index = torch.cdist(whole.take(), rows).argmin(1)
    counts = torch.bincount(index % 10, minlength=10)
    assert counts.min() > 60  # of 100: four standard deviations
    assert counts.max() < 140


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({0: 9}, "unknown"),
        ({3: 9}, "equally many of the classes [3]"),
        ({0: 4, 1: 5}, "equally many of the classes 0 ... 1"),
        ({0: 4, 2: 9}, "not equally many of the classes [0, 2]"),
    ],
)
def test_how_classes_were_sampled_is_said_as_far_as_labels_tell(labels, said):
    assert sampling(Counter(labels)) == said
