"""How often a source delivers each record across crashes, and what it is let know of durable positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from streamcl.protocols import Source


@dataclass(frozen=True, slots=True)
class DeliveryGuarantee:
    """How often each record is learned across crashes.

    kind: "exactly_once", or "at_least_once" (some may come twice), or "at_most_once" (some may be lost).
    reason: one sentence about why, or under which condition.
    """

    kind: Literal["exactly_once", "at_least_once", "at_most_once"]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')}: {self.reason}"


DATASET_GUARANTEE = DeliveryGuarantee("exactly_once", "it can be read again from any position")
"""The guarantee of a data set."""


@runtime_checkable
class Guaranteeing(Protocol):
    """A source that says how often each of its records is learned across crashes."""

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """How often each record is learned."""


def guarantee_of(source: Source) -> DeliveryGuarantee:
    """Return the source's delivery guarantee; where it says nothing, by whether it can be replayed."""
    if isinstance(source, Guaranteeing):
        return source.guarantee
    if source.replayable:
        return DATASET_GUARANTEE
    return DeliveryGuarantee("at_most_once", "it is read once and cannot go back")


@runtime_checkable
class Closable(Protocol):
    """A source that holds connections, threads or files."""

    def close(self) -> None:
        """Release them. Iterating a replayable source again continues where it was."""


@runtime_checkable
class Acknowledging(Protocol):
    """A source that is given the positions which no restart will go back behind."""

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Take a position of `state_dict` whose checkpoint is durable: a hint, for retention."""
