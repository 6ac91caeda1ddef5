"""Reads JSON Lines one record at a time and keeps series of bounded length of them."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcl.storage.json_lines import json_object

NEWEST_ASSESSED = 1000
"""Predictions that those to look at are chosen from: early ones, when little was known, would stay."""


@dataclass(slots=True)
class Lines:
    """Yields the records of a JSON Lines file; `unreadable` counts the lines that are no JSON object."""

    path: Path
    unreadable: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            for line in file:
                record = json_object(line)
                if record is None:
                    self.unreadable += 1
                else:
                    yield record


def as_float(value: Any) -> float | None:
    """Return the value as a float where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_int(value: Any) -> int | None:
    """Return the value as an int where it is a finite number, else None."""
    found = as_float(value)
    return None if found is None else int(found)


def submapping(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping under `key`, or an empty one where there is none."""
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


@dataclass(slots=True)
class Point:
    """The mean and the extremes of `count` neighbouring values; offset: of the last one."""

    offset: int
    mean: float
    low: float
    high: float
    count: int = 1

    def merged(self, later: Point) -> Point:
        """Return one point for this one and a later one."""
        count = self.count + later.count
        mean = (self.mean * self.count + later.mean * later.count) / count
        return Point(later.offset, mean, min(self.low, later.low), max(self.high, later.high), count)


@dataclass(slots=True)
class Series:
    """A curve over the stream in at most `limit` points, each the mean of an equal number of values."""

    limit: int = 800
    points: list[Point] = field(default_factory=list)
    _share: int = 1

    def add(self, offset: int, value: float) -> None:
        """Append one value; offsets never fall."""
        fresh = Point(offset, value, value, value)
        if self.points and self.points[-1].count < self._share:
            self.points[-1] = self.points[-1].merged(fresh)
        else:
            self.points.append(fresh)
        if len(self.points) > self.limit:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            odd = self.points[-1:] if len(self.points) % 2 else []
            self.points = [first.merged(second) for first, second in pairs] + odd
            self._share *= 2


def fitting_window(samples: int, limit: int) -> int:
    """Return 1, 2 or 5 times a power of ten: at most a tenth of the stream, from 20 to `limit`.

    >>> [fitting_window(samples, 1000) for samples in (30, 260, 3438, 9999, 10**6)]
    [20, 20, 200, 500, 1000]
    """
    sizes = (step * 10**power for power in range(1, 7) for step in (1, 2, 5))
    return min(limit, max((size for size in sizes if 20 <= size <= samples / 10), default=20))


@dataclass(slots=True)
class PredictionSeries:
    """Confusion counts of predictions.jsonl, and accuracy over a sliding window of samples.

    assessed: the newest records with stability and novelty.
    """

    window: int = 1000
    max_pairs: int = 200_000
    pairs: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    support: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    end: int = 0
    curve: Series = field(default_factory=Series)
    assessed: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_ASSESSED))
    _recent: deque[bool] = field(default_factory=deque)
    _recent_right: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one record; one at an offset before `end` repeats after a crash and is skipped.

        Unless it completes an earlier one with the label that has come: then it is counted, as no new sample.
        """
        offset, label, guess = as_int(record.get("offset")), record.get("label"), record.get("predicted")
        completes = record.get("labelled_later") is True
        if offset is None or (offset < self.end and not completes):
            return
        self.samples += offset >= self.end
        self.end = max(self.end, offset + 1)
        if not completes and as_float(record.get("stability")) is not None:
            self.assessed.append(record)
        if label is not None:
            self._count(offset, str(label), None if guess is None else str(guess))

    def _count(self, offset: int, label: str, guess: str | None) -> None:
        self.support[label] += 1
        self.right[label] += label == guess
        if (label, guess) in self.pairs or len(self.pairs) < self.max_pairs:
            self.pairs[label, guess] += 1
        self._recent.append(label == guess)
        self._recent_right += label == guess
        if len(self._recent) > self.window:
            self._recent_right -= self._recent.popleft()
        self.curve.add(offset, self._recent_right / len(self._recent))

    def by_instability(self, limit: int) -> list[Mapping[str, Any]]:
        """Return the newest records whose prediction is least stable, the least stable one first."""
        return heapq.nsmallest(limit, self.assessed, key=lambda record: as_float(record["stability"]) or 0.0)

    def by_novelty(self, limit: int) -> list[Mapping[str, Any]]:
        """Return the newest records whose image is most novel, the most novel one first."""
        return heapq.nlargest(limit, self.assessed, key=lambda record: as_float(record.get("novelty")) or 0.0)

    @property
    def window_accuracy(self) -> float | None:
        """Accuracy on the newest labelled samples, as many as `window`; None without any."""
        return self._recent_right / len(self._recent) if self._recent else None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the labelled samples; None without any."""
        labelled = self.support.total()
        return self.right.total() / labelled if labelled else None

    @property
    def per_class(self) -> dict[str, float]:
        """Accuracy on the samples of each class, in the order of their first appearance."""
        return {label: self.right[label] / count for label, count in self.support.items()}
