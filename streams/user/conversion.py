"""Converts the items of a user's iterable to the records and events of a stream, with their offsets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from streamcl.errors import BadRecord
from streamcl.events import Batch, PlacedEvent, RejectedRecord, Sample
from streamcl.requests.label import Label
from streams.offsets import Record, batch_of, in_order, records_of
from streams.user.label_records import checked_label, label_in
from streams.user.record_warnings import RecordWarnings
from streams.user.records import RecordPolicy, reason_of, to_samples

Unit: TypeAlias = Record | Label | PlacedEvent


@dataclass(frozen=True, slots=True)
class ConvertedEvent:
    """An event whose records and labels another Conversion has converted already."""

    event: PlacedEvent


class Conversion:
    """Converts item after item; `offset` is that of the next record, `seen` the digests of classes so far.

    Digests, salted with the stream's name and the same in every process, because a class can be forgotten,
    and the list of those that count against the limit goes into checkpoints. wanted: which records are
    decoded, as for `to_samples`.
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
    ) -> None:
        self._policy = policy
        self._class_names = class_names
        self._salt = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        self.warnings = RecordWarnings(name)
        self._read = partial(
            to_samples,
            name=name,
            policy=policy,
            class_names=class_names,
            columns=columns,
            warnings=self.warnings,
        )
        self.wanted = (0, 1)
        self.offset = offset
        self.seen = dict.fromkeys(seen)

    def units_of(self, item: Any) -> Sequence[Unit]:
        """Return the item's records, or the label or event that it is (nothing, where it is a duplicate).

        A RejectedRecord, which its reader has rejected, takes the next place.
        """
        if type(item) is ConvertedEvent:
            return self._placed(item.event)
        if (label := label_in(item)) is not None:
            return (self._label(label),)
        if issubclass(type(item), RejectedRecord):
            self.offset += 1
            return (replace(item, offset=self.offset - 1),)
        if not issubclass(type(item), PlacedEvent):  # isinstance would ask the user's object
            return self._records(item)
        event = in_order(item, self.offset)
        if not isinstance(event, Batch):
            return () if event is None else (event,)
        records = list[Record]()
        for record in records_of(event):
            if isinstance(record, Sample):
                records += self._records(record)
            else:
                self.offset += 1
                records.append(record)
        batch = batch_of(event.offset, [*records, *map(self._label, event.labels)])
        return (replace(batch, predict_only=event.predict_only, time=event.time),)

    def _placed(self, event: PlacedEvent) -> Sequence[Unit]:
        """Return an event in its place, its records as they are."""
        found = in_order(event, self.offset)
        self.offset = self.offset if found is None else found.end
        return () if found is None else (found,)

    def _records(self, item: Any) -> list[Record]:
        records = []
        for record in self._read(item, offset=self.offset, wanted=self.wanted):
            records.append(self._within_classes(record))
            self.offset += 1
        return records

    def _label(self, item: Label) -> Label:
        """Return the label with its class's name, within the limits; with its fault where it has one."""
        return checked_label(item, self._policy, self._class_names, self._count)

    def _within_classes(self, record: Record) -> Record:
        if isinstance(record, RejectedRecord) or record.label is None:
            return record
        try:
            self._count(record.label)
        except BadRecord as bad:
            if self._policy.on_bad_record == "fail":
                raise
            names = (record.label, record.subject, record.domain, record.privacy)
            return RejectedRecord(self.offset, record.id, reason_of(bad), *names)
        return record

    def _count(self, label: str) -> None:
        """Count a class. Raise BadRecord where it is one more than are allowed."""
        name = label.encode(errors="surrogatepass")
        digest = hashlib.blake2b(name, key=self._salt, digest_size=12).hexdigest()
        if digest not in self.seen and len(self.seen) >= self._policy.max_classes:
            raise BadRecord(
                f"label {label!r} is one class more than the {self._policy.max_classes} allowed",
                hint="raise max_classes",
            )
        self.seen[digest] = None
