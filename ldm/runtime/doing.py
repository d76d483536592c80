"""What was being done when an exception came from a library, for the one line that a user gets of it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Note on whatever exception leaves the block what was being done: "reading runs/latents/train-000000.tar"."""
    try:
        yield
    except Exception as error:
        if not getattr(error, "__notes__", None):  # the innermost says it best
            error.add_note(what)
        raise
