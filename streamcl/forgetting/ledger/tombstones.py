"""Keeps out what was forgotten when the stream brings it back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from streamcl.events import Batch, ForgetRequest, RejectedRecord, Sample
from streamcl.forgetting.ledger.ledger import ErasedKind, Ledger
from streamcl.requests.label import Label

EVERY_USER = "\0every user"
"""Stands for a subject when all users were forgotten; no subject has such a name."""

DROPPED = "forgotten"
"""The reason of a record that keeps its place in a batch but nothing else, because a tombstone stands."""


class Tombstones:
    """Keyed hashes in the ledger of the samples, subjects and classes that must not be learned again."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._expected: set[tuple[ErasedKind, str]] = set()

    def drop_erased(self, batch: Batch) -> Batch:
        """Return the batch without what has a tombstone; such a record keeps its offset, its id goes."""
        if any(self._is_buried(label) for label in batch.labels):
            left = tuple(label for label in batch.labels if not self._is_buried(label))
            batch = replace(batch, labels=left)
        if not any(map(self.covers, batch.samples)) and not any(map(self.covers, batch.rejected)):
            return batch
        dropped = {o for o, s in zip(batch.offsets, batch.samples, strict=True) if self.covers(s)}
        dropped |= {rejected.offset for rejected in batch.rejected if self.covers(rejected)}
        return drop_samples(batch, dropped)

    def expect(self, request: ForgetRequest, ids: Iterable[str]) -> None:
        """Treat a request's tombstones as set, in this process, until `add_tombstones` sets them."""
        for kind, values in _buried_by(request, ids):
            self._expected.update((kind, value) for value in values)

    def add_tombstones(self, request: ForgetRequest, ids: Iterable[str]) -> None:
        """Set the tombstones of a request: its class, or its samples and subject. Again is harmless."""
        for kind, values in _buried_by(request, ids):
            self._ledger.add_tombstones(request.id, kind, values)
            self._expected.difference_update((kind, value) for value in values)

    def are_set(self, kind: ErasedKind, value: str) -> bool:
        """Return whether a sample, a subject or a class was forgotten."""
        return (kind, value) in self._expected or self._ledger.is_tombstoned(kind, value)

    def _is_buried(self, label: Label) -> bool:
        """Return whether the label is of a record, or of a class, that was forgotten."""
        buried = self.are_set
        return buried("sample", label.id) or (label.label is not None and buried("class", label.label))

    def covers(self, record: Sample | RejectedRecord) -> bool:
        """Return whether the record, its subject, its class or every user was forgotten."""
        buried = self.are_set
        return (
            buried("sample", record.id)
            or (record.subject is not None and buried("subject", record.subject))
            or (record.label is not None and buried("class", record.label))
            or (record.privacy == "user" and buried("subject", EVERY_USER))
        )


def _buried_by(request: ForgetRequest, ids: Iterable[str]) -> Iterator[tuple[ErasedKind, Sequence[str]]]:
    """Yield the names that a request keeps out from then on, by their kinds."""
    if request.on_return == "learn":
        return
    match request.kind:
        case "class":
            yield "class", [str(request.label)]
        case "subject":
            yield "subject", [EVERY_USER if request.all_users else str(request.subject)]
    if request.kind != "class":
        yield "sample", tuple(ids)


def drop_samples(batch: Batch, dropped: Collection[int]) -> Batch:
    """Return the batch whose records at these offsets are no more than places."""
    kept = tuple(s for offset, s in zip(batch.offsets, batch.samples, strict=True) if offset not in dropped)
    rejected = [each for each in batch.rejected if each.offset not in dropped]
    rejected += [RejectedRecord(offset, "", DROPPED) for offset in dropped]
    return replace(batch, samples=kept, rejected=tuple(sorted(rejected, key=lambda each: each.offset)))


def names_dropped(batch: Batch, filtered: Batch) -> tuple[set[str], set[Label]]:
    """Return the ids of records, and the labels, that are in a batch and not in it once it was filtered."""
    ids, remaining = (
        {sample.id for sample in each.samples} | {record.id for record in each.rejected}
        for each in (batch, filtered)
    )
    return ids - remaining, set(batch.labels) - set(filtered.labels)


def dropped_from(batch: Batch) -> tuple[int, ...]:
    """Return the offsets of a batch's records that a tombstone has left no more than places."""
    return tuple(rejected.offset for rejected in batch.rejected if rejected.reason == DROPPED)
