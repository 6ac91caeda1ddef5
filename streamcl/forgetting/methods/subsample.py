"""Few of many, evenly spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def subsample(items: Sequence[Item], limit: int) -> list[Item]:
    """At most so many of the items, evenly spread over all of them, in their order."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
