"""Thumbnails on their way from the learner to the web process; what is not taken in time is dropped."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

from streamcl.events import PredictionRecord, Sample
from streamcl.protocols import BatchRecord
from streamcl.sources.remote_sample import RemoteSample
from streamcl.storage.thumbnails import thumbnail

SEND_SECONDS = 1.0
IMAGES_AT_ONCE = 4
"""Of a batch, the last ones: some 10 ms of work a second."""


@dataclass(frozen=True, slots=True)
class LearnedImage:
    """A sample of the stream: its record's id, label, prediction, and the monotonic time of its learning."""

    record: str
    label: str | None
    predicted: str | None
    confidence: float
    learned: float


class ImageSender:
    """Sends thumbnails of the newest batch, as an observer of the loop; it never waits for the other end."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection, self._clock, self._due = connection, clock, float("-inf")
        self._waiting: queue.Queue[list[bytes]] = queue.Queue(1)
        threading.Thread(target=self._send, name="images", daemon=True).start()

    def after_batch(self, record: BatchRecord) -> None:
        """Take thumbnails of a batch, SEND_SECONDS after the last one."""
        now = self._clock()
        if now < self._due or self._waiting.full():
            return
        pairs = zip(record.batch.samples, record.predictions, strict=True)
        here = [pair for pair in pairs if not isinstance(pair[0], RemoteSample)]  # the others have no pixels
        if here:
            self._due = now + SEND_SECONDS
            self._waiting.put_nowait([_packed(*pair, now) for pair in here[-IMAGES_AT_ONCE:]])

    def _send(self) -> None:
        while True:
            for each in self._waiting.get():
                try:
                    self._connection.send_bytes(each)
                except OSError:
                    return  # the web process has ended


def unpack_image(message: bytes) -> tuple[LearnedImage, bytes]:
    """Return an image that was sent, and its thumbnail, a PNG."""
    head, _, png = message.partition(b"\n")
    return LearnedImage(**json.loads(head)), png


def _packed(sample: Sample, made: PredictionRecord, now: float) -> bytes:
    facts = LearnedImage(sample.id, sample.label, made.predicted, made.confidence, now)
    return json.dumps(asdict(facts)).encode() + b"\n" + thumbnail(sample.image)
