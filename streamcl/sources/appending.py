"""Sources that make room in the stream for records which do not come from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

APPENDED, OWN = "appended", "source"
"""Keys of a position after which such records were learned: how many, and the source's own position."""


@runtime_checkable
class Appendable(Protocol):
    """A source whose later records get higher offsets once records of another origin were learned."""

    def append(self, count: int) -> None:
        """Leave out the next `count` offsets: they belong to records that do not come from this source."""


def appended(position: Mapping[str, Any]) -> int:
    """Return how many records of another origin are in the stream before a position."""
    return int(position.get(APPENDED, 0))


def source_position(position: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the source's own part of a position."""
    own: Mapping[str, Any] = position[OWN] if APPENDED in position else position
    return own
