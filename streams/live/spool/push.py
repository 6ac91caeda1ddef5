"""Receives records that are pushed by `streamcl serve` into a spool, each answered once it is on disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from streamcl.errors import BadRecord
from streamcl.sources.delivery import DeliveryGuarantee
from streams.live.spool.push_channel import PushedRecord, PushReceipt, listening
from streams.live.spool.spool_producers import through_spool
from streams.live.spool.spool_record import SpoolEntry
from streams.live.spool.spool_writer import SpoolWriter
from streams.user.images import decode

ROOM_TIMEOUT = 5.0
"""Seconds that a message waits for room in the spool before it is refused."""


class PushProducer:
    """Records and labels that come by POST /v1/records and /v1/labels, while the run is served.

    A record is decoded before it is accepted, so one that cannot be read is refused at once. One that is sent
    again is known by its id.

    Args:
        name: of the stream; a record without an id is called "{name}-{its number}".
        records: whether records are taken; otherwise labels only, beside another source.
    """

    delivery = through_spool(
        DeliveryGuarantee("at_least_once", "records sent again are dropped by their ids")
    )

    def __init__(self, name: str = "push", *, records: bool = True) -> None:
        self.name, self._records = name, records

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once from the spool on."""
        return self.delivery

    def run(self, writer: SpoolWriter, stop: threading.Event) -> None:
        """Take messages until `stop`."""
        with listening(writer.folder, lambda records: self._take(records, writer)):
            stop.wait()

    def _take(self, records: Sequence[PushedRecord], writer: SpoolWriter) -> PushReceipt:
        """Write the records of a message. Raise BadRecord where one cannot be read: none is written then."""
        before = writer.repetitions
        entries = [self._entry(each, writer) for each in records]
        numbers = writer.append_entries(entries, timeout=ROOM_TIMEOUT)
        named = zip(entries, numbers, strict=True)
        ids = tuple(entry.head.get("id") or f"{self.name}-{number}" for entry, number in named)
        return PushReceipt(ids, writer.repetitions - before)

    def _entry(self, record: PushedRecord, writer: SpoolWriter) -> SpoolEntry:
        if "image" in record:
            if not self._records:
                raise BadRecord("the records of this run come from its source; labels are taken")
            decode(record["image"], writer.form.policy)
        (entry,) = map(writer.fitting, writer.form.entries_of(record))
        reason = entry.head.get("reason") or entry.head.get("fault")
        if reason is not None:
            raise BadRecord(reason)
        return entry
