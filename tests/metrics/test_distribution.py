import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from cleanfid import fid as clean
from prdc import compute_prdc
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.inception import InceptionScore

from ldm.metrics.collect import sampling
from ldm.metrics.distribution import inception_score, inception_score_in_order, kernel_distance, neighbourhoods
from ldm.metrics.neighbours import Neighbours
from ldm.metrics.statistics import Subset, pixel_hashes


def normal(n, d, seed, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "wide"), [(1, 4), (3, 5), (5, 2)])
def test_neighbourhoods_equal_the_authors_code(k, wide, capsys):
    real, fake = normal(1300, 6, 0), normal(1100, 6, 1, scale=0.8, shift=0.3)
    ours = neighbourhoods(real, fake, k, wide)
    theirs = {n: compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=n) for n in (k, wide)}
    capsys.readouterr()  # it prints
    for name, of in (("precision", k), ("recall", k), ("density", wide), ("coverage", wide)):
        assert ours[name] == pytest.approx(float(theirs[of][name]), abs=1e-12), name
    precision, recall = calculate_precision_recall_full(fake.double(), real.double(), neighborhood=k)
    assert (ours["precision"], ours["recall"]) == pytest.approx((precision, recall), abs=1e-6)


def test_neighbourhoods_of_a_set_with_itself_and_of_sets_apart():
    x = normal(200, 3, 0)
    same = neighbourhoods(x, x.clone(), 3, 5)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["density"] == pytest.approx(6 / 5)  # the image itself, and the five whose balls just reach, on average
    assert set(neighbourhoods(x, x + 100, 3, 5).values()) == {0}
    with pytest.raises(ValueError, match="5 neighbours need more images a side than 200 and 5"):
        neighbourhoods(x, x[:5], 3, 5)


def test_kernel_distance_equals_clean_fids_where_no_subset_is_drawn():
    real, fake = normal(500, 20, 0), normal(500, 20, 1, shift=0.2)
    ours = kernel_distance(real, fake, seed=0, subsets=2, most=500)
    theirs = clean.kernel_distance(real.double().numpy(), fake.double().numpy(), num_subsets=2, max_subset_size=500)
    assert ours["value"] == pytest.approx(theirs, rel=1e-6)
    assert ours["std"] is None  # of one subset alone
    assert kernel_distance(real, fake, seed=0, subsets=2, most=400)["std"] > 0


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


def test_inception_score_by_adms_splits_equals_torch_fidelitys_without_a_shuffle():
    """Where both have as many images in each split; and, with a rest, ADM's own lines in numpy."""
    logits = torch.cat([normal(400, 10, 0, scale=2.0), normal(200, 10, 1, scale=0.5)])  # as if classes came in turn
    found = inception_score_in_order(logits, size=200)
    theirs = isc_features_to_metric(logits, splits=3, shuffle=False)
    assert found["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-5)
    assert found["splits"] == "200 in order"
    assert found["value"] != pytest.approx(inception_score(logits, seed=0, splits=3)["value"], rel=1e-3)
    p, scores = logits.double().softmax(1).numpy(), []
    for i in range(0, 600, 250):
        part = p[i : i + 250]
        divergence = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(divergence, 1))))
    assert inception_score_in_order(logits, size=250)["value"] == pytest.approx(np.mean(scores), rel=1e-9)
    assert inception_score_in_order(1000 * torch.eye(10))["value"] == pytest.approx(10, rel=1e-9)  # p(y) of 0


def test_copies_are_told_from_new_samples_and_drawn():
    train, held_out, new = normal(2000, 4, 0), normal(1000, 4, 1), normal(1000, 4, 2)
    copied = train[:1000] + 1e-4 * normal(1000, 4, 3)
    partly = torch.cat([new[:950], copied[:50]])
    image = torch.arange(2000)[:, None, None, None].remainder(256).expand(-1, 3, 2, 2).to(torch.uint8)

    def look(samples):
        ranks = [Neighbours(samples, held_out, image[:1000], most=20) for _ in range(2)]
        for i, rank in enumerate(ranks):
            for part in torch.arange(i, 2000, 2).split(300):
                rank.update(train[part], image[part])
        return ranks[0].settle().merge(ranks[1].settle())

    assert look(copied).compute()["value"] > 0.999
    assert look(copied).compute()["chance_of_being_nearer"] > 0.999
    assert look(new).compute()["value"] == pytest.approx(0.01, abs=0.02)
    assert look(new).compute()["chance_of_being_nearer"] == pytest.approx(0.5, abs=0.06)  # four standard deviations
    assert look(partly).compute()["value"] == pytest.approx(0.06, abs=0.02)
    found = look(partly)
    nearest = torch.cdist(partly.double(), train.double())
    np.testing.assert_allclose(found.nearest[:1000], nearest.amin(1), rtol=1e-6)
    rows, columns = found.rows()
    assert (len(rows), columns) == (40, 8)
    wanted = nearest.amin(1).argsort()[:20]  # the closest pairs of all, in order
    assert set(wanted.tolist()) <= set(range(950, 1000))
    pairs = rows.view(20, 2, -1)[..., 0]
    assert torch.equal(pairs[:, 0], image[wanted][:, 0, 0, 0])
    assert torch.equal(pairs[:, 1], image[nearest[wanted].argmin(1)][:, 0, 0, 0])


def test_equal_images_stay_in_a_subset_in_their_share():
    """A generator that has collapsed in part must not seem whole: equal hashes are not kept or dropped together."""
    shares = []
    for seed in range(20):
        keys = pixel_hashes(
            torch.randint(0, 255, (1000, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()
        )
        keys[:300] = keys[0]
        subset = Subset(100)
        for part in torch.randperm(1000, generator=torch.Generator().manual_seed(seed)).split(64):
            subset.add(keys[part], (part < 300).float())
        shares.append(float(subset.take().mean()))
    assert len(subset.take()) == 100
    assert sum(shares) / 20 == pytest.approx(0.3, abs=0.045)  # four standard deviations
    assert min(shares) > 0.1


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
        together.join(subset.settle().keys, subset.rows)
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
