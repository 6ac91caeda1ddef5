"""Images per second by a monotonic clock, and the memory of this process as the operating system sees it."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamcl.protocols import State


class Throughput:
    """Images and seconds, over the whole run (processes before a resume included) and over the last batches.

    images: since the beginning of the run. clock: seconds that never run backwards; time starts at
    construction or at `load_state_dict`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = 50) -> None:
        self._clock, self._start = clock, clock()
        self.images, self._earlier_seconds = 0, 0.0
        self._recent: deque[tuple[float, int]] = deque([(self._start, 0)], maxlen=window + 1)

    def update(self, images: int) -> None:
        """Count `images` more that have been learned."""
        self.images += images
        self._recent.append((self._clock(), self.images))

    def read(self, images: int) -> dict[str, float | None]:
        """Return speed, seconds and memory (MiB) once `images` have passed since the run began."""
        self.update(images - self.images)
        return {"images_per_s": self.images_per_s, "seconds": self.seconds, "memory_mb": memory_mb()}

    @property
    def seconds(self) -> float:
        """Seconds of work since the beginning of the run."""
        return self._earlier_seconds + self._clock() - self._start

    @property
    def images_per_s(self) -> float | None:
        """Over the last `window` batches; None before the clock has moved."""
        (start, before), (end, now) = self._recent[0], self._recent[-1]
        return (now - before) / (end - start) if end > start else None

    @property
    def mean_images_per_s(self) -> float | None:
        """Over the whole run; None before the clock has moved."""
        seconds = self.seconds
        return self.images / seconds if seconds > 0 else None

    def state_dict(self) -> State:
        """Return the images and the seconds so far."""
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from `state`; the time in between is not counted."""
        self.images, self._earlier_seconds = int(state["images"]), float(state["seconds"])
        self._start = self._clock()
        self._recent.clear()
        self._recent.append((self._start, self.images))


def memory_mb() -> float:
    """Return the resident memory of this process, in MiB; its peak where /proc does not exist."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_mb()
    return pages * resource.getpagesize() / 2**20


def peak_memory_mb() -> float:
    """Return the most resident memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux
