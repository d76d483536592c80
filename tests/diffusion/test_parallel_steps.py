"""How places of codes are divided among parallel steps: the dynamic programme by brute force, and MaskGIT's rule."""

import itertools
import math
from functools import partial

import pytest
import torch

from ldm.diffusion.autoregressive import check_plan, plan, planned_grid
from ldm.diffusion.path import LinearPath
from ldm.diffusion.times import cosine_grid, uniform_grid

PATH = LinearPath()


def brute_force(losses: list[float], steps: int) -> float:
    """The least cost of all ways from D hidden places to none."""
    places = len(losses)
    ways = itertools.combinations(range(1, places), steps - 1)
    return min(cost([places, *sorted(way, reverse=True), 0], losses) for way in ways)


def cost(way: list[int], losses: list[float]) -> float:
    return sum((now - then) * losses[now - 1] for now, then in itertools.pairwise(way))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_the_dynamic_programme_is_as_cheap_as_the_cheapest_way(steps: int) -> None:
    losses = torch.rand(9, generator=torch.Generator().manual_seed(steps)).cumsum(0).tolist()
    way = list(plan(tuple(losses), steps))
    assert len(way) == steps + 1
    assert way[0] == 9
    assert way[-1] == 0
    assert cost(way, losses) == pytest.approx(brute_force(losses, steps))
    grid = planned_grid(PATH, steps, losses=losses)
    assert (grid * 9).round().tolist() == way


def test_more_steps_than_losses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps=5 must be at most 4, the places whose losses grid.losses has"):
        planned_grid(PATH, 5, losses=[1.0, 2.0, 3.0, 4.0])


def test_maskgits_rule() -> None:
    """Of r = i / 8 of the steps done, cos(pi r / 2) stays hidden (Chang et al. 2022, section 3.3)."""
    wanted = [math.cos(math.pi / 2 * i / 8) for i in range(8)]
    grid = cosine_grid(PATH, 8)
    assert grid[:-1].tolist() == pytest.approx(wanted)
    assert grid[-1] == 0


def test_a_plan_is_of_as_many_places() -> None:
    grid = partial(planned_grid, losses=[1.0, 2.0, 3.0, 4.0])
    check_plan(grid, 4)
    check_plan(uniform_grid, 16)
    with pytest.raises(ValueError, match="losses of 4 places of codes, and this model has 16 places"):
        check_plan(grid, 16)
    with pytest.raises(ValueError, match="this model makes latents"):
        check_plan(grid, None)
