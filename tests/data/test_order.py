from itertools import islice

import numpy as np
import pytest
import scipy.stats

from ldm.data.order import Order, Stretches, shuffled


def keys(length, batches, **options):
    return [key for batch in islice(Order(**options).batches(length), batches) for key in batch]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_epoch_sees_every_image_once_over_all_ranks(world):
    """10 epochs of 30 images in batches of 4 a rank, which divide nothing evenly."""
    seen = [key for rank in range(world) for key in keys(30, 75, seed=3, batch_size=4, rank=rank, world=world)]
    for epoch in range(300 // 30):
        assert sorted(i for e, i in seen if e == epoch) == list(range(30))


def test_epochs_are_shuffled_differently_and_by_the_seed():
    def epoch(e, seed):
        return [i for k, i in keys(50, 10, seed=seed, batch_size=10) if k == e]

    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != list(range(50))


def test_continues_where_it_stopped():
    whole = keys(30, 20, seed=0, batch_size=4, rank=1, world=2)
    assert keys(30, 13, seed=0, batch_size=4, rank=1, world=2, images_seen=7 * 8) == whole[7 * 4 :]


def test_stretches_lose_nothing_between_passes():
    stretches = Stretches(iter(range(100)), 7)
    assert [len(stretches), *[list(stretches) for _ in range(3)]] == [7, *[list(range(i, i + 7)) for i in (0, 7, 14)]]


@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 1000, 4097])
def test_a_shuffle_without_memory_is_a_permutation(length):
    found = [shuffled(np.arange(length), length, (seed,)) for seed in range(3)]
    for order in found:
        assert sorted(order.tolist()) == list(range(length))
    if length >= 16:
        assert not np.array_equal(found[0], found[1])
    some = range(0, length, max(1, length // 50))  # one at a time they are what they are together
    assert [int(shuffled(np.array([i]), length, (0,))[0]) for i in some] == found[0][some].tolist()


def test_a_shuffle_has_the_statistics_of_a_random_one():
    """Chi-squared of where places go over many seeds, and of fixed points and neighbours, which are Poisson(1) each."""
    length, seeds = 20, 1000
    orders = np.stack([shuffled(np.arange(length), length, (seed, 7)) for seed in range(seeds)])
    for place in (0, 7, 19):
        counts = np.bincount(orders[:, place], minlength=length)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    fixed = (orders == np.arange(length)).sum(1)
    neighbours = (np.diff(orders, axis=1) == 1).sum(1)
    for counts in (fixed, neighbours):
        assert counts.mean() == pytest.approx(1, abs=0.1)
        assert counts.var() == pytest.approx(1, abs=0.15)


def test_a_billion_images_are_dealt_at_once():
    first = next(Order(seed=0, batch_size=256, rank=63, world=64, images_seen=10**12).batches(10**9))
    assert len({index for _, index in first}) == 256
    assert all(0 <= index < 10**9 and epoch == 1000 for epoch, index in first)
