"""What a config gives a function or a class, held against that one's signature: names, types and ranges.

So a constructor's keyword arguments are the schema of its config node, for our classes and for a user's alike; what
pydantic finds wrong is said in one line, with the key and what belongs there.
"""

import inspect
import json
import pydoc
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from ldm.runtime.targets import HOW_TO_NAME

Checked = TypeVar("Checked")
PLAIN = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)  # "3" is no number, and 3 no text
HYDRAS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}

WANTED = {  # by the type of pydantic's error
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a group of keys",
    "model_type": "a group of keys",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
}


class ArgumentError(ValueError):
    """What is wrong with a key below the node that is being checked."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key}{problem}")


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


def read(validate: Callable[[str], Checked], given: Any) -> Checked:
    """What `validate` makes of a plain config as JSON, in which 1e5 is a whole number wherever only that belongs.

    Where either belongs, 1.0 stays the share that it is: Lightning takes 1.0 for all batches and 1 for one.
    """
    try:
        return validate(json.dumps(given))
    except ValidationError as error:
        holder = [json.loads(json.dumps(given))]
        for each in error.errors():
            if each["type"] == "int_type" and isinstance(each["input"], float) and each["input"].is_integer():
                make_whole(holder, each["loc"])
        return validate(json.dumps(holder[0]))


def make_whole(holder: list[Any], loc: tuple[str | int, ...]) -> None:
    """Makes the number at pydantic's place in holder[0] a whole one; a place also names branches of unions."""
    parent: Any = holder
    key: Any = 0
    for part in loc:
        inside = parent[key]
        if (isinstance(inside, dict) and part in inside) or (isinstance(inside, list) and isinstance(part, int)):
            parent, key = inside, part
    parent[key] = int(parent[key])


def explain(error: ValidationError, config: dict[str, Any]) -> str:
    """In one line, the first key that is wrong, what it is, and what belongs there."""
    errors = error.errors()
    key, value = place_of(errors[0]["loc"], config)
    cause = errors[0].get("ctx", {}).get("error")
    if isinstance(cause, ArgumentError):
        return f"{key}{cause.key}{cause.problem}"
    if cause is not None:  # a check across keys, which names them itself
        return str(cause)
    if errors[0]["type"] == "extra_forbidden":
        return f"{key} is no option here"
    if errors[0]["type"] == "missing" and isinstance(value, list):
        return f"{key}={shown(value)} has too few values"
    if errors[0]["type"] == "missing":
        return f"{key} is missing: pass {key}=..."
    return f"{key}={shown(value)} must be {wanted([e for e in errors if place_of(e['loc'], config)[0] == key])}"


def place_of(loc: tuple[str | int, ...], config: Any) -> tuple[str, Any]:
    """The key that an error is about, as a command line writes it, and its value; a list's elements are the list's."""
    keys: list[str] = []
    for part in loc:
        if not isinstance(config, dict) or not isinstance(part, str):
            break
        keys.append(part)
        if part not in config:
            return ".".join(keys), None
        config = config[part]
    return ".".join(keys), config


def wanted(errors: list[Any]) -> str:
    """What belongs in a place, from all that was tried there."""
    words = []
    for error in [e for e in errors if e["type"] in WANTED] or errors:  # others are of types that no config can have
        bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in error.get("ctx", {}).items()}
        text = WANTED.get(error["type"], f"right ({error['msg']})").format(**bounds)
        words.append(text.replace("'", ""))
    words = list(dict.fromkeys(words))
    return " or ".join(words)


def shown(value: Any) -> str:
    """A value as a command line writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


Node = Annotated[dict[str, Any], node_with()]  # what `build` makes an object of
Choice = Annotated[dict[str, Any], AfterValidator(lambda node: check_node(node) if node else node)]  # {} is none
