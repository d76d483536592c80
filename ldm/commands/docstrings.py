"""What a constructor's docstring says of its arguments, read from its source: importing it would import torch."""

import ast
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
Definition = ast.ClassDef | ast.FunctionDef


@cache
def said_of_arguments(target: str) -> dict[str, str]:
    """{"model_channels": "the width, in channels, that ..."} of ldm.models.unet.UNet; empty for what is not of this
    package, or lists none."""
    package, *rooms, name = target.split(".")
    file = PACKAGE.joinpath(*rooms).with_suffix(".py")
    if package != PACKAGE.name or not file.is_file():
        return {}
    defined = (node for node in ast.parse(file.read_text()).body if isinstance(node, Definition) and node.name == name)
    node = next(defined, None)
    return {} if node is None else _entries(ast.get_docstring(node) or "", _arguments(node))


def _arguments(node: Definition) -> set[str]:
    """A function's arguments, a constructor's, or a dataclass's fields."""
    if isinstance(node, ast.FunctionDef):
        return {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
    inside = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    fields = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    return fields.union(*map(_arguments, inside))


def _entries(text: str, names: set[str]) -> dict[str, str]:
    """Each `name: text` of a docstring, whose further lines are indented more."""
    entries: dict[str, str] = {}
    open_at: tuple[str, int] | None = None  # the entry that goes on, and the indentation of its name
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        start = re.match(r"\s*(\w+)(?:\s*:\s+|\s{2,})(\S.*)", line)
        if start is not None and start[1] in names:
            entries[start[1]], open_at = start[2], (start[1], indent)
        elif open_at is not None and line.strip() and indent > open_at[1]:
            entries[open_at[0]] += f" {line.strip()}"
        else:
            open_at = None
    return entries
