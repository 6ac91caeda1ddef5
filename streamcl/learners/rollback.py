"""A learning step happens whole or not at all: what takes one back where it fails half-way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Rollback: TypeAlias = Callable[[], None]


@contextmanager
def rollback_on_error(*undos: Rollback) -> Iterator[None]:
    """Run the body; where it raises, a lack of memory say, take it back by all the `undos` and raise on."""
    try:
        yield
    except Exception:
        rollback(*undos)
        raise


def rollback(*undos: Rollback) -> None:
    """Call all of them, in order."""
    for undo in undos:
        undo()
