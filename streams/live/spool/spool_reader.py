"""Reads a spool while a producer fills it: each record exactly once, from the spool on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.errors import SourceError, StreamclError, cause_of
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, FetchRecords, RecordKey
from streamcl.storage.segment import LogRecord
from streams.live.spool.spool import Spool
from streams.live.spool.spool_record import SpoolFormat, value_of
from streams.live.spool.spool_writer import RECENT_IDS, SpoolProducer, SpoolWriter

RECORDS_AT_ONCE = 64  # records
BYTES_AT_ONCE = 16 * 2**20
STOP_TIMEOUT = 2.0  # seconds in which a producer's thread is expected to stop


class SpoolReader:
    """The records of a spool in their order, as a live reader; `producer` fills it in a thread meanwhile.

    A key is the record's number in the spool, and the position is the next one. Records that are learned are
    kept for a while (see Retention) and can be fetched by their ids.

    Args:
        spool: read and written by this reader alone.
        producer: its end is the end of the stream.
        form: how the producer's records are read.
        recent_ids: see SpoolWriter.
    """

    def __init__(
        self,
        spool: Spool,
        producer: SpoolProducer,
        form: SpoolFormat | None = None,
        *,
        recent_ids: int = RECENT_IDS,
    ) -> None:
        self.name, self._producer, self._spool = producer.name, producer, spool
        self._form, self._recent_ids = form, recent_ids
        self._writer: SpoolWriter | None = None
        self._thread: _ProducerThread | None = None
        self._read = self._next = 0

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """The producer's, which knows the way to the spool."""
        return self._producer.guarantee

    @property
    def retained(self) -> Spool:
        """The spool."""
        return self._spool

    @property
    def writer(self) -> SpoolWriter:
        """Writes to the spool. Raise SourceError where the reader is not open."""
        if self._writer is None:
            raise SourceError(f"the spool in {self._spool.folder} is closed")
        return self._writer

    def open(self, position: State | None) -> None:
        """Open the spool and continue after `position`; the producer begins with the first poll."""
        self._spool.open()
        log = self._spool.log
        self._next = log.first if position is None else position["next"]
        if not log.first <= self._next <= log.end:
            self._spool.close()
            raise SourceError(
                f"the spool in {self._spool.folder} holds the records {log.first} to {log.end - 1}, and the "
                f"run goes on at {self._next}: those in between are lost",
                hint="restore the spool, or start over with --fresh",
            )
        self._read = self._next
        if position is not None:
            self._spool.acknowledge(self._next)
        self._writer = SpoolWriter(self._spool, self.name, self._form, recent_ids=self._recent_ids)

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        """Return the next records; wait for one up to `timeout`. The producer's end, or error, comes last."""
        if self._thread is None:
            self._thread = _ProducerThread(self._producer, self.writer, self._spool)
        ended = self._thread.ended
        with self._spool.changed:
            if not ended and self._spool.log.end <= self._read:
                self._spool.changed.wait(timeout)
        found = self._take(RECORDS_AT_ONCE)
        if not found and ended:
            if self._thread.error is not None:
                raise self._thread.error
            return None
        return self._arrivals(found)

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the records with these numbers."""
        found = list[Arrival]()
        while len(found) < len(keys) and (records := self._take(keys[-1] + 1 - self._read)):
            found += self._arrivals(records)
        return found

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move the position behind the last of these records."""
        self._next = keys[-1] + 1

    def position(self) -> State:
        """Return the number of the next record."""
        return {"next": self._next}

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Drop what is older than it has to be kept."""
        self._spool.acknowledge(position["next"])

    @property
    def fetch(self) -> FetchRecords | None:
        """Returns records that were taken by their ids, while the spool keeps them."""
        return lambda ids: self._spool.fetch(ids, None if self._writer is None else self._next)

    def lag(self) -> int | None:
        """Return how many records of the spool are not learned."""
        return self._spool.log.end - self._next if self._spool.is_open else None

    def close(self) -> None:
        """Stop the producer and close the spool; what it has received and not written is not acknowledged."""
        if self._writer is not None and self._thread is not None and not self._thread.join():
            self._writer.close()  # it may wait for room
            self._thread.join()
        self._writer = self._thread = None
        self._spool.close()

    def _take(self, limit: int) -> list[LogRecord]:
        found = self._spool.log.read(self._read, limit=min(limit, RECORDS_AT_ONCE), max_bytes=BYTES_AT_ONCE)
        if found:
            self._read = found[-1].sequence + 1
        return found

    def _arrivals(self, found: Sequence[LogRecord]) -> list[Arrival]:
        return [Arrival(value_of(each), each.sequence) for each in found]


class _ProducerThread:
    """The thread of a producer; `error` is what has ended it."""

    def __init__(self, producer: SpoolProducer, writer: SpoolWriter, spool: Spool) -> None:
        self.error: BaseException | None = None
        self._producer, self._writer, self._spool = producer, writer, spool
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamcl-spool", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written."""
        return self._done.is_set()

    def join(self) -> bool:
        """Ask the thread to stop; return whether it did. One that hangs in its source is left behind."""
        self._stop.set()
        self._thread.join(STOP_TIMEOUT)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._producer.run(self._writer, self._stop)
        except StreamclError as error:
            self.error = error
        except Exception as error:  # a producer may raise anything; the reader raises it
            self.error = SourceError(f"{self._producer.name} failed: {cause_of(error)}")
            self.error.__cause__ = error
        finally:
            self._done.set()
            with self._spool.changed:
                self._spool.changed.notify_all()
