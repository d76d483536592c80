from itertools import islice

import pytest

from ldm.data.order import Order, Stretches


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
