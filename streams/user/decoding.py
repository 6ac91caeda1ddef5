"""Decodes the pictures of several records in threads, ahead of their conversion in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from streamcl.events import Pixels
from streams.user.images import ImageLimits, decode

THREADS = min(4, os.cpu_count() or 1)
"""Threads that decode, more of which a learner's own work would wait for."""


class PendingImage:
    """A picture that is being decoded; it stands in for its bytes in a record.

    Args:
        pixels: its result is the pixels, uint8 RGB [H, W, 3], or the BadRecord that says why there are none.
    """

    def __init__(self, pixels: Future[Pixels]) -> None:
        self._pixels = pixels

    def pixels(self) -> Pixels:
        """Return the pixels, uint8 RGB [H, W, 3]. Raise BadRecord as `streams.user.images.decode` does."""
        return self._pixels.result()


class DecodingPool:
    """Threads that decode pictures, started with the first one.

    Args:
        limits: of the pictures.
        image: the key of mappings under which they are.
        threads: fewer than two decode nothing ahead.
    """

    def __init__(self, limits: ImageLimits, image: str = "image", threads: int = THREADS) -> None:
        self._limits, self._image, self._count = limits, image, threads
        self._threads: ThreadPoolExecutor | None = None

    def ahead(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the values in order; a dict whose picture is encoded has a `PendingImage` in its place."""
        given = list(values)
        if self._count < 2 or len(given) < 2:
            return iter(given)
        return iter([self._begun(value) for value in given])

    def close(self) -> None:
        """End the threads, once they have decoded what they were given."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    def _begun(self, value: Any) -> Any:
        data = value.get(self._image) if type(value) is dict else None
        if type(data) is not bytes:
            return value
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="streamcl-decode")
        return {**value, self._image: PendingImage(self._threads.submit(decode, data, self._limits))}
