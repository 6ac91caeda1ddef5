"""How many records wait at the other end of a source that can say it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Lagging(Protocol):
    """A source that may know how many records wait to be read."""

    def lag(self) -> int | None:
        """Return how many, as of a moment ago; None where that is not known, or not yet."""


def lag_of(source: object) -> int | None:
    """Return how many records wait at the other end of a source; None where it does not say."""
    return source.lag() if isinstance(source, Lagging) else None
