"""Copies of records that a source keeps on this machine, and from which an erasure takes some out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from streamcl.events import ForgetRequest
from streamcl.requests.label import Label


class RetainedRecords(Protocol):
    """Records that were received and are kept for some time, learned or not."""

    @property
    def description(self) -> str:
        """A statement for receipts of what is kept, and for how long; without names and paths."""

    def count(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> int:
        """Return how many records `erase` would take out."""

    def erase(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> int:
        """Take out, for each request, the records with its ids, and all that its tombstones would drop.

        Also the requests themselves, where they came with the stream. No file holds their bytes afterwards;
        their places stay. Return how many records were taken out; repeating it is harmless.
        """

    def erase_returned(self, ids: Collection[str], labels: Collection[Label]) -> None:
        """Take out records and labels that came although they are forgotten, and are not committed yet."""

    def scrub(self, request: ForgetRequest) -> None:
        """Take out a request that came with the stream and was refused or failed; no record is."""


@runtime_checkable
class Retaining(Protocol):
    """A source, or a reader, that may keep copies of its records."""

    @property
    def retained(self) -> RetainedRecords | None:
        """The copies, or None where there are none."""


def retained_of(source: object) -> RetainedRecords | None:
    """Return the copies that a source, or a reader, keeps; None where it keeps none."""
    return source.retained if isinstance(source, Retaining) else None


@runtime_checkable
class StoredRemotely(Protocol):
    """A source, or a reader, whose records stay at the other end, where streamcl cannot remove them."""

    @property
    def stored_at(self) -> str | None:
        """The place, and until when, in a clause for receipts; None where it is not known."""


def stored_at(source: object) -> str | None:
    """Return where, and until when, the other end holds the records of a source; None where nobody says."""
    return source.stored_at if isinstance(source, StoredRemotely) else None
