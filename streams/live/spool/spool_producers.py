"""Fills a spool from a user's iterable, or from another live reader."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from streamcl.errors import SourceError
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import LiveReader
from streams.bounded_queue import put_until
from streams.live.spool.spool_record import SpoolEntry, SpoolFormat
from streams.live.spool.spool_writer import SpoolWriter, in_groups
from streams.user.readers import END_OF_ITEMS
from streams.user.retrying import RetryingReader

GROUP = 64  # records that are synced together at most
STOP_CHECK_INTERVAL = 0.2  # seconds after which a waiting thread looks whether to stop
ARRAY = "__array__"  # of the objects in a note that stand for an array
MAX_POSITION_BYTES = 64 * 1024  # bytes; it is written again with every group

Pulled: TypeAlias = tuple[Sequence[SpoolEntry], bytes | None]
"""The entries of one item, and the note after it."""


def through_spool(before: DeliveryGuarantee) -> DeliveryGuarantee:
    """Return the guarantee of a stream that reaches the spool with the guarantee `before`."""
    return DeliveryGuarantee("exactly_once", f"from the spool on; before it {before}")


class IterableProducer:
    """Spools the records of a user's iterable, as fast as it yields them.

    One that can be replayed continues where the spool ends. Any other begins anew with each process: what it
    yields while no process runs is not received, and what it yields again is received again, unless its
    records have ids.

    Args:
        reader: of the user's iterable.
        name: of the stream.
        form: how records are read.
    """

    def __init__(self, reader: RetryingReader, name: str, form: SpoolFormat) -> None:
        self._reader, self.name, self._form = reader, name, form
        self._replayable = reader.replayable

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once from the spool on."""
        if self._replayable:
            return through_spool(DeliveryGuarantee("exactly_once", "it continues where the spool ends"))
        return through_spool(DeliveryGuarantee("at_most_once", "what it yields while no run reads is lost"))

    def run(self, writer: SpoolWriter, stop: threading.Event) -> None:
        """Write what comes; what has come while the disk synced is written together."""
        if writer.note and self._replayable:
            position = position_of(writer.note)
            self._reader.restart(position["items"], position["inner"])
        pulled = _PullThread(self._reader, self._form, stop)
        while (items := pulled.take()) or (items is not None and not stop.is_set()):
            for group in in_groups(items):
                writer.append_entries([each for entries, _ in group for each in entries], group[-1][1])


class _PullThread:
    """Pulls items in a thread, since the iterable may take hours for the next one."""

    def __init__(self, reader: RetryingReader, form: SpoolFormat, stop: threading.Event) -> None:
        self._reader, self._form, self._stop = reader, form, stop
        self._items: queue.Queue[Pulled | BaseException | None] = queue.Queue(GROUP)
        self._last: list[BaseException | None] = []
        threading.Thread(target=self._pull, name="streamcl-spool-pull", daemon=True).start()

    def take(self) -> list[Pulled] | None:
        """Return the items that have come, none after a short wait; None at the end. Raise its error."""
        found = list[Pulled]()
        while not self._last and sum(len(entries) for entries, _ in found) < GROUP:
            try:
                item = self._items.get_nowait() if found else self._items.get(timeout=STOP_CHECK_INTERVAL)
            except queue.Empty:
                return found
            if isinstance(item, tuple):
                found.append(item)
            else:
                self._last.append(item)
        if not found and self._last:
            if self._last[0] is not None:
                raise self._last[0]
            return None
        return found

    def _pull(self) -> None:
        count, last = 0, None
        try:
            while not self._stop.is_set() and (item := self._reader.pull(count)) is not END_OF_ITEMS:
                entries = list(self._form.entries_of(item))
                count += len(entries)
                if not self._put((entries, self._note())):
                    return
        except BaseException as error:  # the user's code may raise anything; `take` raises it
            last = error
        self._put(last)

    def _note(self) -> bytes | None:
        """Return the position after the item; None where the iterable has none."""
        if not self._reader.can_mark:
            return None
        return position_note({"items": self._reader.items, "inner": self._reader.mark()})

    def _put(self, item: Pulled | BaseException | None) -> bool:
        return put_until(self._items, item, self._stop)


class ReaderProducer:
    """Spools the records of another live reader, which is acknowledged what the spool holds.

    One that can go back continues where the spool ends.
    """

    def __init__(self, reader: LiveReader, form: SpoolFormat) -> None:
        self._reader, self.name, self._form = reader, reader.name, form

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once from the spool on."""
        return through_spool(self._reader.guarantee)

    def run(self, writer: SpoolWriter, stop: threading.Event) -> None:
        """Write what comes, and acknowledge it."""
        reader, can_return = self._reader, self._reader.guarantee.kind != "at_most_once"
        reader.open(position_of(writer.note) if writer.note and can_return else None)
        try:
            while not stop.is_set() and (arrivals := reader.poll(STOP_CHECK_INTERVAL)) is not None:
                read = [(list(self._form.entries_of(each.value)), each.key) for each in arrivals]
                for group in in_groups(read):
                    reader.advance([key for _, key in group])
                    position = reader.position()
                    entries = [each for found, _ in group for each in found]
                    writer.append_entries(entries, position_note(position) if can_return else None)
                    reader.acknowledge(position)
        finally:
            reader.close()


def position_note(position: State) -> bytes:
    """Return a position as the spool's note. Raise SourceError where it is too large."""
    note = json.dumps(position, separators=(",", ":"), default=_encoded_array).encode()
    if len(note) > MAX_POSITION_BYTES:
        raise SourceError(
            f"the source's position has {len(note)} bytes, too many for a spool",
            hint="a source with such a position can go back by itself: leave source.spool out",
        )
    return note


def position_of(note: bytes) -> State:
    """Return the position that `position_note` encoded."""
    position: State = json.loads(note, object_hook=_decoded_array)
    return position


def _encoded_array(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    data = base64.b64encode(array.tobytes()).decode()
    return {ARRAY: data, "dtype": array.dtype.str, "shape": list(array.shape)}


def _decoded_array(value: dict[str, Any]) -> Any:
    if ARRAY not in value:
        return value
    flat = np.frombuffer(base64.b64decode(value[ARRAY]), value["dtype"])
    return flat.reshape(value["shape"]).copy()
