"""What pydantic finds wrong, said in one line: the key, what it is, and what belongs there."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

Checked = TypeVar("Checked")

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


def first_line(error: BaseException | str) -> str:
    """What an exception says at first; its kind, if nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ArgumentError(ValueError):
    """What is wrong with a key below the node that is being checked."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key}{problem}")


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
    """A value as a command line writes it; what no terminal should be sent is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
