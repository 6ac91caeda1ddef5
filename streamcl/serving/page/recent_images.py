"""The newest images with their predictions, in the memory of the web process alone, for the live page."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from streamcl.forgetting.ledger.ledger import LEDGER
from streamcl.forgetting.ledger.ledger_reader import newest_requests
from streamcl.serving.image_channel import unpack_image
from streamcl.serving.schemas import ImageResult

MAX_IMAGES = 24
MAX_RECENT_BYTES = 512 << 10
"""A larger image that somebody had predicted is not kept; those of the stream come as thumbnails."""
CHECKED_REQUESTS = 100
RECEIVE_SECONDS = 1.0
SHOWN_FORMATS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
"""Formats that browsers show, by their first bytes; nothing is decoded here."""


@dataclass(frozen=True, slots=True)
class RecentImage:
    """An image. record: its id in the stream; None where it was only predicted, on somebody's request."""

    number: int
    data: bytes
    media: str
    record: str | None
    label: str | None
    predicted: str | None
    confidence: float


class RecentImages:
    """The newest images that were predicted or learned.

    All are dropped when a request to forget comes, changes its state or ends, whoever made it. While one
    waits none is shown, since it may select images that are still being learned.

    Args:
        folder: of the run.
        clock: returns the monotonic time in seconds, the same in all processes.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._clock = folder / LEDGER, clock
        self._images: deque[RecentImage] = deque(maxlen=MAX_IMAGES)
        self._numbers, self._guard = count(1), threading.Lock()
        self._requests = self._states()
        self._since = clock()

    def add_predicted(self, images: Iterable[bytes], results: Iterable[ImageResult]) -> None:
        """Take in encoded images with their predictions."""
        for data, result in zip(images, results, strict=True):
            media = next((each for start, each in SHOWN_FORMATS.items() if data.startswith(start)), None)
            if media is not None and len(data) <= MAX_RECENT_BYTES and result.error is None:
                with self._guard:
                    number = next(self._numbers)
                    found = (None, None, result.label, result.confidence)
                    self._images.append(RecentImage(number, data, media, *found))

    def add_learned(self, message: bytes) -> None:
        """Take in an image of the stream as `ImageSender` sends it, unless it is from before an erasure."""
        image, png = unpack_image(message)
        with self._guard:
            if not self._check() and image.learned > self._since:
                shown = RecentImage(
                    next(self._numbers),
                    png,
                    "image/png",
                    image.record,
                    image.label,
                    image.predicted,
                    image.confidence,
                )
                self._images.append(shown)

    def newest(self) -> list[RecentImage]:
        """Return the images, the newest first; none while a request to forget waits."""
        with self._guard:
            return [] if self._check() else list(reversed(self._images))

    def find(self, number: int) -> RecentImage | None:
        """Return an image by its number; None where it has been dropped."""
        return next((each for each in self.newest() if each.number == number), None)

    def drop(self) -> None:
        """Forget every image."""
        with self._guard:
            self._drop()

    def receive(self, connection: Connection) -> None:
        """Take in the images of the stream until the other end is closed: the body of a thread."""
        while True:
            try:
                if connection.poll(RECEIVE_SECONDS):
                    self.add_learned(connection.recv_bytes())
                else:
                    self.newest()  # drops what has been asked to be forgotten, though nobody looks
            except (EOFError, OSError):
                return

    def _check(self) -> bool:
        """Drop all where the requests are others than before; return whether one waits."""
        requests = self._states()
        if requests != self._requests:
            self._requests = requests
            self._drop()
        return any(status in {"received", "started"} for _, status in requests)

    def _states(self) -> list[tuple[int, str]]:
        return [(each.position, each.status) for each in newest_requests(self._ledger, CHECKED_REQUESTS)]

    def _drop(self) -> None:
        self._images.clear()
        self._since = self._clock()
