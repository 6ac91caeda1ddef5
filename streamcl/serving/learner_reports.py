"""How the learner's process reports to the web process beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Event
from typing import NamedTuple

UNKNOWN = -1
REPORT_SECONDS = 1.0


class SharedLag:
    """How many records wait at the source, in memory that both processes share."""

    def __init__(self, context: SpawnContext) -> None:
        self._value = context.Value("q", UNKNOWN)

    def get(self) -> int | None:
        """Return the number; None where it is not known."""
        value = self._value.value
        return None if value == UNKNOWN else value

    def set(self, lag: int | None) -> None:
        """Note the number; None where it is not known."""
        self._value.value = UNKNOWN if lag is None else lag

    def follow(self, lag: Callable[[], int | None]) -> None:
        """Note what `lag` returns, every second, in a thread that ends with the process."""

        def repeat() -> None:
            while True:
                self.set(lag())
                time.sleep(REPORT_SECONDS)

        threading.Thread(target=repeat, name="lag", daemon=True).start()


class LearnerReports(NamedTuple):
    """Given to the learner's process when it is started.

    published: it sets this once the first snapshot is there. images: takes thumbnails of what is learned.
    lag: it keeps this up to date.
    """

    published: Event
    images: Connection
    lag: SharedLag
