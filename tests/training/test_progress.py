import pytest
import torch

from ldm.training.ema import decay_at
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
    """Against the decay of diffusers' EMAModel, which copied LDM's warm-up from tensorflow."""
    from diffusers.training_utils import EMAModel

    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9)
    for n in range(12):
        assert decay_at(n, 0.9) == pytest.approx(theirs.get_decay(n + 1))
