"""Objects from plain data, as checkpoints hold it: {"_target_": "package.module.Name", **arguments}, nested at will.

A target names an attribute of a module, a class or a function; with "_partial_": true its arguments are bound, and it
is not called yet. Only targets that are defined in given packages are built. Nothing else is interpreted: a string
stays the string that it is, also where Hydra would see an interpolation in it.
"""

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

TARGET, PARTIAL = "_target_", "_partial_"
HOW_TO_NAME = (
    "give it as package.module.Name, and start the command where the package is installed, or in the folder that the "
    "package lies in"
)


class UntrustedError(ValueError):
    """Data name targets that are defined outside the packages that may be named.

    foreign: each such target, and the module that defines it.
    """

    def __init__(self, foreign: dict[str, str]) -> None:
        self.foreign = foreign
        super().__init__(f"refusing to build {', '.join(sorted(foreign))}")


def packages(trust: str | Sequence[str]) -> tuple[str, ...]:
    """The packages that an option `trust` lists, which may be one name; ValueError if one is no package's name."""
    names = (trust,) if isinstance(trust, str) else tuple(trust)
    for name in names:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise ValueError(f"trust={name} must list packages by their names, as in trust=[my_pkg]")
    return names


def targets_in(data: Any) -> Iterator[Any]:
    """Each value of a key "_target_", at any depth of dicts, lists and tuples."""
    if isinstance(data, dict):
        if TARGET in data:
            yield data[TARGET]
        data = list(data.values())
    if isinstance(data, list | tuple):
        for value in data:
            yield from targets_in(value)


def foreign_targets(data: Any, allowed: Sequence[str]) -> dict[str, str]:
    """The targets in `data` that none of the allowed packages defines, each with the module that does.

    While one is named from elsewhere, nothing is imported at all.

    Raises:
        ValueError: if an allowed package is named for something that is not there.
    """
    modules = {str(target): str(target).rpartition(".")[0] for target in targets_in(data)}
    foreign = {target: module for target, module in modules.items() if not _within(module, allowed)}
    if not foreign:  # what a module holds may still be what it has imported from elsewhere
        defined = {target: getattr(_locate(target), "__module__", None) or "nowhere" for target in modules}
        foreign = {target: module for target, module in defined.items() if not _within(module, allowed)}
    return foreign


def check(data: Any, allowed: Sequence[str]) -> None:
    """UntrustedError if `data` name a target outside the allowed packages; ValueError if one is not there."""
    foreign = foreign_targets(data, allowed)
    if foreign:
        raise UntrustedError(foreign)


def build(data: Any, allowed: Sequence[str]) -> Any:
    """Build what `data` describes: dicts with a target become what it returns, all else stays what it is.

    Raises:
        UntrustedError: if it names a target outside the allowed packages; nothing has been called then.
        ValueError: if a target is not there, or does not take the arguments that it is given.
    """
    check(data, allowed)
    return _construct(data)


def _construct(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return [_construct(value) for value in data]
    if not isinstance(data, dict):
        return data
    arguments = {key: _construct(value) for key, value in data.items() if key not in (TARGET, PARTIAL)}
    if TARGET not in data:
        return arguments
    function, bound_only = _locate(data[TARGET]), data.get(PARTIAL, False)
    signature = inspect.signature(function)
    try:
        (signature.bind_partial if bound_only else signature.bind)(**arguments)
    except TypeError as error:
        raise ValueError(f"{data[TARGET]}: {error}") from None
    return partial(function, **arguments) if bound_only else function(**arguments)


def _within(name: str, allowed: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in allowed)


def _locate(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{target} can't be imported ({error}): {HOW_TO_NAME}") from error
