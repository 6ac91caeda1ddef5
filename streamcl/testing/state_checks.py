"""Assertions that the checks of sources and detectors share."""

from __future__ import annotations

from streamcl.protocols import State
from streamcl.storage.plain_state import state_hash


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def plain_hash(state: State) -> str:
    """Return a hash of the state; raise AssertionError where it holds what no checkpoint can."""
    try:
        return state_hash(state)
    except TypeError as error:
        raise AssertionError(f"the state is no plain data: {error}") from error
