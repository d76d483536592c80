from typing import Literal

import pytest

from ldm.runtime.ranges import Count, Fraction, Positive, Share, checked


@checked
def drawn(
    x,
    *,
    share: Share = 0.5,
    rate: Positive | None = None,
    kind: Literal["a", "b"] = "a",
    n: Count = 1,
    way: Literal["exact"] | Positive = "exact",
):
    return x, share, rate, kind, n, way


def test_a_call_within_the_ranges_is_the_functions_own():
    assert drawn(1, share=1, rate=None, kind="b", n=3, way=0.5) == (1, 1, None, "b", 3, 0.5)
    assert drawn.__name__ == "drawn"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.5}, "share=1.5 must be at most 1"),
        ({"share": float("nan")}, "share=nan must be at least 0"),
        ({"rate": 0}, "rate=0 must be more than 0"),
        ({"kind": "c"}, "kind=c must be one of a, b"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"way": "quick"}, "way=quick must be one of exact or a number"),
        ({"way": -1.0}, "way=-1.0 must be one of exact or more than 0"),
    ],
)
def test_a_call_beyond_them_names_the_argument_and_what_belongs_there(options, said):
    with pytest.raises(ValueError, match=said):
        drawn(1, **options)


def test_constructors_are_held_to_theirs():
    class Path:
        @checked
        def __init__(self, *, left: Fraction) -> None:
            self.left = left

    assert Path(left=0).left == 0
    with pytest.raises(ValueError, match="left=1 must be less than 1"):
        Path(left=1)
