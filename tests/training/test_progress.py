import pytest
import torch

from ldm.training.callbacks import EMA
from ldm.training.progress import Schedule, seed_from


def test_schedule():
    schedule = Schedule(steps=110, warmup=10, decay="cosine")
    assert [schedule(i) for i in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
    assert [schedule(i) for i in (10, 60, 110, 500)] == pytest.approx([1, 0.5, 0, 0])
    assert Schedule(steps=10)(9999) == 1
    with pytest.raises(ValueError, match=r"schedule\.decay"):
        Schedule(steps=1, decay="linear")


def test_seeds_differ_in_every_counter():
    draws = set()
    for progress in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed_from(*progress)
        draws.add(torch.rand(1).item())
    seed_from(0, 0, 0)
    assert len(draws) == 4
    assert torch.rand(1).item() in draws


def test_ema_is_the_recurrence_with_ldms_warm_up():
    average, current, expected = [torch.zeros(3)], [torch.ones(3)], 0.0
    for n in range(1, 6):
        EMA(0.9)._kwargs["multi_avg_fn"](average, current, torch.tensor(n))
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay)
    torch.testing.assert_close(average[0], torch.full((3,), expected))
