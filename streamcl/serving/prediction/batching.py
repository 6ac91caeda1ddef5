"""Collects the images of concurrent requests into batches for the predictors; the queue has an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from streamcl.errors import StreamclError
from streamcl.serving.prediction.replies import PredictedImage
from streamcl.storage.snapshots import SnapshotInfo

MIN_FILLING = 7 / 8
"""The part of a padded batch that has to be real images. A half costs about as much time for each image."""


class QueueFull(StreamclError):
    """As many images wait as may wait; the request may come again later."""


class NoPredictor(StreamclError):
    """An image could not be predicted: predictors died of it, or none has a model."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """The classes of one image, or the reason why it cannot be read, and the version of the model."""

    model: SnapshotInfo
    result: PredictedImage | str


@dataclass(eq=False, slots=True)
class WaitingImage:
    """An encoded image until its outcome is there.

    since: a time of the loop. deadline: of the monotonic clock. attempts: how often a predictor was given it.
    """

    image: bytes
    top_k: int
    since: float
    deadline: float | None
    outcome: asyncio.Future[ImageOutcome] = field(repr=False)
    attempts: int = 0


def images_to_take(waiting: int, limit: int) -> int:
    """Return how many of the images that wait are predicted next.

    Images are padded to a power of two. Clients that wait for their answers would fall into two groups, such
    as 17 and 15, that cost as much as 48; so the rest waits, unless nearly all of the padded images are real.

    >>> [images_to_take(waiting, 32) for waiting in (1, 2, 3, 13, 14, 17, 27, 28, 40)]
    [1, 2, 2, 8, 14, 16, 16, 28, 32]
    """
    if waiting >= limit:
        return limit
    below = 1 << (waiting.bit_length() - 1)
    return waiting if waiting >= MIN_FILLING * 2 * below else below


class Batcher:
    """A queue of images from which predictors take batches. It belongs to one event loop.

    A batch is taken when it is full, or when its first image has waited for `max_delay`; while all
    predictors are busy images gather without any further wait. Since a model reads as many images as the next
    power of two at a time, of 17 that wait 16 are taken. Images with a deadline and others share no batch.

    Args:
        max_batch: images of a batch.
        max_delay: seconds.
        capacity: images that may wait.
    """

    def __init__(self, *, max_batch: int, max_delay: float, capacity: int) -> None:
        self.capacity = capacity
        self._max_batch, self._max_delay = max_batch, max_delay
        self._waiting: deque[WaitingImage] = deque()
        self._arrived = asyncio.Event()
        self._collecting = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(
        self, images: Sequence[bytes], top_k: int, deadline: float | None = None
    ) -> list[asyncio.Future[ImageOutcome]]:
        """Put all of the images into the queue, or raise QueueFull; return a future for each.

        deadline: of the monotonic clock, by which they are to be predicted, with less work where that is
            short.
        """
        if len(self._waiting) + len(images) > self.capacity:
            raise QueueFull(f"{len(self._waiting)} images wait; {self.capacity} may")
        loop = asyncio.get_running_loop()
        now = loop.time()
        added = [WaitingImage(each, top_k, now, deadline, loop.create_future()) for each in images]
        self._waiting.extend(added)
        self._arrived.set()
        return [each.outcome for each in added]

    async def next_batch(self) -> list[WaitingImage]:
        """Wait for a batch and take it. A call that is cancelled takes none."""
        loop = asyncio.get_running_loop()
        async with self._collecting:
            while True:
                while not self._waiting:
                    await self._arrival(None)
                left = self._waiting[0].since + self._max_delay - loop.time()
                if len(self._waiting) < self._max_batch and left > 0:
                    await self._arrival(left)
                elif batch := self._take():
                    return batch

    def return_batch(self, batch: Sequence[WaitingImage], *, attempts: int) -> None:
        """Put a batch back whose predictor has died; images that were tried so often fail instead."""
        for each in batch:
            each.attempts += 1
            if each.attempts >= attempts and not each.outcome.done():
                each.outcome.set_exception(NoPredictor("a predictor ended while it read this image"))
        self._waiting.extendleft(each for each in reversed(batch) if not each.outcome.done())
        self._arrived.set()

    def _take(self) -> list[WaitingImage]:
        timed = self._waiting[0].deadline is not None
        alike = sum(1 for _ in takewhile(lambda each: (each.deadline is not None) == timed, self._waiting))
        size = images_to_take(alike, self._max_batch)
        taken = (self._waiting.popleft() for _ in range(size))
        return [each for each in taken if not each.outcome.done()]

    async def _arrival(self, seconds: float | None) -> None:
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)
