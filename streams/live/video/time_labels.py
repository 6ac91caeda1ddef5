"""The labels of a video by time, from a file beside it."""

from __future__ import annotations

import bisect
import csv
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from streamcl.errors import SourceError, cause_of


class LabelledTime(NamedTuple):
    """A stretch of a video with one label: from `start` to before `end`, in seconds."""

    start: float
    end: float
    label: str


class TimeLabels:
    """The label at each time of a video.

    >>> labels = TimeLabels([LabelledTime(0, 2, "cat"), LabelledTime(5, 6, "dog")])
    >>> [labels.at(seconds) for seconds in (1.5, 2, 5.5)]
    ['cat', None, 'dog']
    """

    def __init__(self, stretches: Sequence[LabelledTime]) -> None:
        self._stretches = sorted(stretches)

    def at(self, seconds: float) -> str | None:
        """Return the label at that time; None where there is none."""
        index = bisect.bisect_right(self._stretches, seconds, key=lambda each: each.start) - 1
        if index < 0 or seconds >= self._stretches[index].end:
            return None
        return self._stretches[index].label


def sidecar_of(video: Path) -> TimeLabels:
    """Return the labels in the CSV or JSON file of the video's name; no labels where there is neither.

    Raise SourceError where it cannot be read, or where stretches overlap.
    """
    for path in (video.with_suffix(".csv"), video.with_suffix(".json")):
        if path.is_file():
            try:
                stretches = sorted(_stretch(row) for row in _rows(path))
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
                raise SourceError(
                    f"{path.name} has no labels by time: {cause_of(error)}",
                    hint="its columns, or keys, are start and end in seconds, and label",
                ) from error
            _check_apart(path, stretches)
            return TimeLabels(stretches)
    return TimeLabels(())


def _rows(path: Path) -> Iterable[dict[str, str]]:
    text = path.read_text(encoding="utf-8-sig")
    return json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))


def _stretch(row: dict[str, str]) -> LabelledTime:
    start, end = float(row["start"]), float(row["end"])
    if not 0 <= start < end < float("inf"):
        raise ValueError(f"the stretch from {start} to {end} has no length")
    return LabelledTime(start, end, str(row["label"]))


def _check_apart(path: Path, stretches: Sequence[LabelledTime]) -> None:
    for before, after in pairwise(stretches):
        if after.start < before.end:
            raise SourceError(f"{path.name} has two labels at {after.start} s: {before.label}, {after.label}")
