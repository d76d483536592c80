import dataclasses

import pytest
import torch

from ldm.training.progress import seed_from
from ldm.training.schedule import Schedule


def test_schedule():
    schedule = Schedule(steps=110, warmup=10, decay="cosine")
    assert [schedule(i) for i in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
    assert [schedule(i) for i in (10, 60, 110, 500)] == pytest.approx([1, 0.5, 0, 0])
    assert Schedule(steps=10)(9999) == 1
    with pytest.raises(ValueError, match=r"schedule\.decay"):
        Schedule(steps=1, decay="linear")


def cosine(**options):
    return Schedule(**({"steps": 100, "warmup": 10, "decay": "cosine"} | options))


def test_a_cosine_laid_anew_is_that_of_a_run_planned_so_from_the_beginning():
    longer = cosine(steps=300)
    after = longer.going_on(cosine(), 100)
    assert [after(n) for n in (100, 200, 299)] == [longer(n) for n in (100, 200, 299)]
    assert after(100) > 1000 * cosine()(99)


@pytest.mark.parametrize(("resume", "seen", "peak"), [("tail", 60, cosine()(59)), (0.1, 100, 0.1)])
def test_a_tail_falls_from_where_it_is_to_nothing(resume, seen, peak):
    longer = cosine(steps=300, resume=resume)
    after = longer.going_on(cosine(), seen)
    assert after(seen) == pytest.approx(peak)
    middle = (seen + 300) // 2
    assert after(middle) == pytest.approx(peak / 2)
    assert after(299) < 0.001 * peak
    # stopped and gone on with the same steps: the same curve, whatever resume says by then
    saved = dataclasses.replace(longer, **after.state())
    again = cosine(steps=300).going_on(saved, middle)
    assert [again(n) for n in range(seen, 300)] == [after(n) for n in range(seen, 300)]


def test_what_has_not_decayed_yet_has_no_tail():
    assert cosine(steps=300, resume="tail").going_on(cosine(), 5)(10) == 1
    constant = cosine(decay="constant", resume="tail")
    assert dataclasses.replace(constant, steps=300).going_on(constant, 50)(100) == 1


def test_seeds_differ_in_every_counter():
    draws = set()
    for progress in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed_from(*progress)
        draws.add(torch.rand(1).item())
    seed_from(0, 0, 0)
    assert len(draws) == 4
    assert torch.rand(1).item() in draws
