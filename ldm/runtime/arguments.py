"""What a config gives a function or a class, held against that one's signature: names, types and ranges.

So a constructor's keyword arguments are the schema of its config node, for our classes and for a user's alike.
"""

import inspect
import pydoc
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from ldm.runtime.targets import HOW_TO_NAME
from ldm.runtime.wrong import ArgumentError, read, shown, wanted

PLAIN = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)  # "3" is no number, and 3 no text
HYDRAS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def arguments_of(target: Callable[..., Any], *supplied: str) -> AfterValidator:
    """Holds a config node to target's keyword arguments, but for those that the command supplies."""

    def check(given: dict[str, Any]) -> dict[str, Any]:
        return check_arguments(target, given, supplied=supplied)

    return AfterValidator(check)


def node_with(*supplied: str) -> AfterValidator:
    """Holds a node to its target's keyword arguments, but for those that the command supplies."""
    return AfterValidator(lambda node: check_node(node, supplied))


def check_node(node: dict[str, Any], supplied: tuple[str, ...] = ()) -> dict[str, Any]:
    """A node with a `_target_`, its numbers as the target's signature has them; ArgumentError for what does not fit."""
    name = node.get("_target_")
    if not isinstance(name, str):
        raise ArgumentError("", " must name what it builds: pass _target_=package.module.Name")
    try:
        target: Any = pydoc.locate(name)  # Hydra's own prints several lines where it fails
    except pydoc.ErrorDuringImport as error:  # whatever a user's module raises
        raise ArgumentError("._target_", f"={name} can't be imported: {' '.join(str(error.value).split())}") from None
    if target is None:
        raise ArgumentError("._target_", f"={name} can't be imported: there is none; {HOW_TO_NAME}")
    return check_arguments(target, node, supplied=supplied, partial=bool(node.get("_partial_")))


def check_arguments(
    target: Callable[..., Any], given: dict[str, Any], *, supplied: tuple[str, ...] = (), partial: bool = False
) -> dict[str, Any]:
    """The arguments that a config gives target, whole numbers as whole numbers.

    Args:
        target:    a function or class.
        given:     its arguments by name; a value that is a node with a `_target_` is checked likewise.
        supplied:  arguments that come from elsewhere.
        partial:   whether more will be supplied by whoever calls it, so that none is missing here.

    Raises:
        ArgumentError: for a name, type or number that target does not take, or one that it lacks.
    """
    parameters = inspect.signature(target).parameters
    hints = hints_of(target)
    named = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    checked = dict(given)
    for name, value in given.items():
        if name in HYDRAS:
            continue
        if not takes_any and (name not in named or name in supplied):
            known = ", ".join(each for each in named if each not in supplied)
            raise ArgumentError(f".{name}", f" is no option of {target.__name__}, which has {known or 'none'}")
        try:
            if isinstance(value, dict) and "_target_" in value:
                checked[name] = check_node(value)
            elif name in hints:
                checked[name] = check_value(hints[name], value)
        except ArgumentError as error:
            raise ArgumentError(f".{name}{error.key}", error.problem) from None
    missing = [
        name
        for name in named
        if parameters[name].default is inspect.Parameter.empty and name not in given and name not in supplied
    ]
    if missing and not partial:
        raise ArgumentError(f".{missing[0]}", f" is missing, which {target.__name__} needs")
    return checked


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of target's arguments, with their ranges; none where they can't be resolved."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def check_value(annotation: Any, value: Any) -> Any:
    """The value, as the annotation wants it; unchanged where pydantic has no schema of the annotation."""
    try:
        adapter = TypeAdapter(annotation, config=PLAIN)
    except Exception:  # pydantic's own errors, and those of types that only look like types
        return value
    try:
        checked = read(adapter.validate_json, value)
    except ValidationError as error:
        raise ArgumentError("", f"={shown(value)} must be {wanted(error.errors())}") from None
    return checked if isinstance(checked, int) else value  # 1e5 became whole; lists stay lists, as cards record them


Node = Annotated[dict[str, Any], node_with()]  # what `build` makes an object of
Choice = Annotated[dict[str, Any], AfterValidator(lambda node: check_node(node) if node else node)]  # {} is none
