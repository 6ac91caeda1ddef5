"""Converts the items of a user's iterable to the records and events of a stream, with their offsets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from streamcl.errors import BadRecord
from streamcl.events import Batch, Event, ForgetRequest, RejectedRecord, Sample
from streams.offsets import Record, batch_of, in_order, records_of
from streams.user.records import RecordPolicy, reason_of, to_samples

Unit: TypeAlias = Record | Event


class Conversion:
    """Converts item after item; `offset` is that of the next record, `seen` the digests of classes so far.

    Digests, because a class can be forgotten, and the list of those that count against the limit goes into
    checkpoints. wanted: which records are decoded, as for `to_samples`.
    """

    def __init__(
        self,
        name: str,
        policy: RecordPolicy,
        class_names: Sequence[str],
        columns: Mapping[str, str] | None,
        *,
        offset: int,
        seen: Iterable[str],
        wanted: tuple[int, int] = (0, 1),
    ) -> None:
        self._name, self._policy = name, policy
        self._salt = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        self._class_names, self._columns = class_names, columns
        self.wanted = wanted
        self.offset = offset
        self.seen = dict.fromkeys(seen)

    def units_of(self, item: Any) -> Sequence[Unit]:
        """Return the item's records, or the event that it is (nothing, where it is a duplicate)."""
        if issubclass(type(item), Batch | ForgetRequest):  # isinstance would ask the user's object
            return self._event(item)
        return self._records(item)

    def _event(self, event: Event) -> Sequence[Unit]:
        checked = in_order(event, self.offset)
        if not isinstance(checked, Batch):
            return () if checked is None else (checked,)
        parts = [part for record in records_of(checked) for part in self._checked(record)]
        return (batch_of(checked.offset, parts),)

    def _checked(self, record: Record) -> Sequence[Record]:
        if isinstance(record, Sample):
            return self._records(record)
        self.offset += 1
        return (record,)

    def _records(self, item: Any) -> list[Record]:
        records = []
        read = to_samples(
            item,
            offset=self.offset,
            name=self._name,
            policy=self._policy,
            class_names=self._class_names,
            columns=self._columns,
            wanted=self.wanted,
        )
        for record in read:
            records.append(self._within_classes(record))
            self.offset += 1
        return records

    def digest(self, label: str) -> str:
        """Return a hash of a class's name, salted with the stream's; the same in every process."""
        name = label.encode(errors="surrogatepass")
        return hashlib.blake2b(name, key=self._salt, digest_size=12).hexdigest()

    def _within_classes(self, record: Record) -> Record:
        if isinstance(record, RejectedRecord) or record.label is None:
            return record
        digest = self.digest(record.label)
        if digest in self.seen:
            return record
        if len(self.seen) < self._policy.max_classes:
            self.seen[digest] = None
            return record
        bad = BadRecord(
            f"label {record.label!r} is one class more than the {self._policy.max_classes} allowed",
            hint="raise max_classes",
        )
        if self._policy.on_bad_record == "fail":
            raise bad
        return RejectedRecord(self.offset, record.id, reason_of(bad))
