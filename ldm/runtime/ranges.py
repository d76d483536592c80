"""Numbers with their ranges, for the signatures of what a config or a caller gives.

`runtime/arguments.py` holds a config to them before anything is built; `checked` holds a call to them.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Len, Lt

Count = Annotated[int, Ge(1)]  # how many, at least one
Steps = Annotated[int, Ge(1), Le(1_000_000)]  # of a sampler: their times fit into any memory
Several = Annotated[int, Ge(2)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
InsideUnit = Annotated[float, Interval(gt=0, lt=1)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]  # of something of which a part must be left
Decay = Fraction  # of a running mean

Blocks = Annotated[int, Interval(ge=1, le=64)]  # of a network, at each of its resolutions
Widths = Annotated[Sequence[Count], Len(1, 12)]  # one for each resolution; twelve halve 4,096 to 2
Multipliers = Annotated[Sequence[Positive], Len(1, 12)]  # likewise, where half a width may be

P = ParamSpec("P")
R = TypeVar("R")
BOUNDS: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", operator.ge, "at least"),
    Gt: ("gt", operator.gt, "more than"),
    Le: ("le", operator.le, "at most"),
    Lt: ("lt", operator.lt, "less than"),
}

KINDS: dict[type, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number")}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Holds each call to the ranges and the choices of the function's own signature.

    Raises:
        ValueError: in the call, naming the argument, its value and what belongs there.
    """
    parameters = signature(function)
    annotations = {name: p.annotation for name, p in parameters.parameters.items()}

    @wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in parameters.bind(*args, **kwargs).arguments.items():
            for belongs in wrong(annotations[name], value):
                raise ValueError(f"{name}={value} must be {belongs}")
        return function(*args, **kwargs)

    return held


def wrong(annotation: Any, value: Any) -> Iterator[str]:
    """What belongs in the value's place, for each bound or choice of the annotation that it breaks, and its type."""
    if get_origin(annotation) in (Union, UnionType) and value is not None:  # one of its members has to hold
        each = [list(wrong(one, value)) for one in get_args(annotation) if one is not NoneType]
        if all(each):
            yield " or ".join(words[0] for words in each)
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        yield f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is Annotated and value is not None:
        kind, *parts = get_args(annotation)
        if kind in KINDS and (not isinstance(value, KINDS[kind][0]) or isinstance(value, bool)):
            yield KINDS[kind][1]
            return
        for part in parts:
            for bound in part if isinstance(part, GroupedMetadata) else (part,):
                name, holds, words = BOUNDS[type(bound)]
                if not holds(value, limit := getattr(bound, name)):
                    yield f"{words} {limit:g}"
