"""Keeps a slow or failing sink from delaying the stream: a bounded queue, a thread, and counts of losses."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from streamcl.errors import cause_of
from streamcl.protocols import Sink, State
from streamcl.sinks.redaction import MissedRedaction, RedactableSink, RedactionTarget

logger = logging.getLogger(__name__)

WARNING_INTERVAL = 60.0
"""Seconds between two warnings about the same sink."""


REDACTION_TIMEOUT = 60.0
"""Seconds that an erasure waits for a sink to take out what was erased; files of some 100 MB take less."""


class BestEffortSink:
    """Hands records to `sink` from a thread of its own; what does not fit or work is dropped and counted.

    No method but `redact` raises for the sink's sake, and none but `close` waits for it, at most
    `close_timeout` seconds, and `redact`, for longer. `flush` asks the sink to flush and does not wait: this
    is for copies of the run's record, never for the record itself. Memory is bounded by `size` records.
    """

    def __init__(
        self,
        sink: Sink,
        name: str,
        *,
        size: int = 1000,
        close_timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._sink, self._name, self._close_timeout, self._clock = sink, name, close_timeout, clock
        self._warn_after = float("-inf")
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(size)
        self._thread = threading.Thread(target=self._work, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def write(self, topic: str, record: Mapping[str, Any]) -> None:
        """Queue one record, or drop it where the queue is full."""
        record = dict(record)
        self._enqueue(lambda: self._sink.write(topic, record))

    def flush(self) -> None:
        """Ask the sink to flush once it has caught up."""
        self._enqueue(self._sink.flush)

    def close(self) -> None:
        """Let the sink catch up and close it, within `close_timeout` seconds."""
        deadline = self._clock() + self._close_timeout
        try:
            self._queue.put(None, timeout=self._close_timeout)
        except queue.Full:
            self.dropped += self._queue.qsize()
        else:
            self._thread.join(max(0.0, deadline - self._clock()))
        if self._thread.is_alive():
            self._warn("did not finish in time; what it had not written is lost")

    def redact(self, target: RedactionTarget) -> int:
        """Have the sink redact once it has caught up, where it can; return how many records changed.

        Raise MissedRedaction where it fails, or has not finished after REDACTION_TIMEOUT seconds.
        """
        sink = self._sink
        if not isinstance(sink, RedactableSink):
            return 0
        outcome: Future[int] = Future()

        def redact() -> None:
            try:
                outcome.set_result(sink.redact(target))
            except (Exception, SystemExit) as error:  # see state_dict
                outcome.set_exception(error)
                raise

        try:
            self._queue.put(redact, timeout=REDACTION_TIMEOUT)
            return outcome.result(REDACTION_TIMEOUT)
        except (Exception, SystemExit) as error:
            raise MissedRedaction([self._name]) from error

    def state_dict(self) -> State:
        """Return the sink's own position, or nothing where it raises."""
        try:
            return self._sink.state_dict()
        except (Exception, SystemExit) as error:  # whatever a plug-in raises must not stop the stream
            self._fail(error)
            return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the sink back to its position, once it has caught up."""
        self._enqueue(lambda: self._sink.load_state_dict(state))

    def _enqueue(self, call: Callable[[], object]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self.dropped += 1
            self._warn("is too slow")

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            self._try(call)
        self._try(self._sink.close)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # see state_dict
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failed += 1
        self._warn(f"failed: {cause_of(error)}")

    def _warn(self, what: str) -> None:
        now = self._clock()
        if now < self._warn_after:
            return
        self._warn_after = now + WARNING_INTERVAL
        counts = f"{self.dropped} records dropped, {self.failed} calls failed so far"
        logger.warning("sink %s %s (%s); learning continues", self._name, what, counts)
