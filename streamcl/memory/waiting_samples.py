"""Samples that wait for their labels, each with the prediction that was made at first sight."""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from streamcl.events import NO_PIXELS, Prediction, Sample
from streamcl.memory.png import PngBytes, from_png, to_png
from streamcl.protocols import State

MAX_REMOVED_TIMES = 1000
"""Times of samples that are gone; with more than half of them gone the rest is sorted anew."""


@dataclass(frozen=True, slots=True)
class WaitingSample:
    """A sample without a label, its place in the stream, its first prediction, and when it was made.

    time: seconds since the epoch; None where the stream has no clock. scored: it was learned, and its label
    was withdrawn, so that its first prediction has been compared with a label already.
    """

    sample: Sample
    offset: int
    prediction: Prediction
    time: float | None
    scored: bool = False


@dataclass(frozen=True, slots=True)
class _Packed:
    """A waiting sample without pixels, the pixels as the bytes of a PNG, and the number of its arrival."""

    entry: WaitingSample
    pixels: PngBytes
    number: int


class WaitingSamples:
    """A bounded store of samples by their ids. Pixels are compressed without loss.

    Args:
        max_samples: the oldest leaves where one more would come.
        max_bytes: of compressed pixels; the oldest leave where there would be more.
        wait: seconds of the stream's clock after which a sample leaves; None: never.
    """

    def __init__(self, max_samples: int, max_bytes: int, wait: float | None = None) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise ValueError(f"{max_samples} samples of {max_bytes} bytes; expected 1 or more of both")
        self._max_samples, self._max_bytes, self._wait = max_samples, max_bytes, wait
        self._packed: dict[str, _Packed] = {}  # the oldest first
        self._bytes = 0
        self._names: dict[int, str] = {}  # of those that wait, by the numbers of their arrivals
        self._numbers = count()
        self._times: list[tuple[float, int]] = []  # a heap with the numbers; also of some that are gone

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, name: str) -> bool:
        return name in self._packed

    @property
    def bytes(self) -> int:
        """Compressed pixels, in bytes."""
        return self._bytes

    def put(self, entry: WaitingSample) -> None:
        """Let a sample wait. Of two with one id the first stays: what was predicted of it first counts."""
        name = entry.sample.id
        if name not in self._packed:
            bare = replace(entry, sample=replace(entry.sample, image=NO_PIXELS))
            self._add(name, bare, to_png(entry.sample.image))

    def take(self, name: str) -> WaitingSample | None:
        """Remove and return the sample with this id; None where none waits."""
        packed = self._remove(name)
        if packed is None:
            return None
        sample = replace(packed.entry.sample, image=from_png(packed.pixels))
        return replace(packed.entry, sample=sample)

    def expire(self, now: float | None) -> int:
        """Remove the samples that have waited too long at the time `now`; return how many."""
        if now is None or self._wait is None:
            return 0
        expired, last = 0, now - self._wait
        while self._times and self._times[0][0] < last:
            _, number = heapq.heappop(self._times)
            expired += number in self._names and self._remove(self._names[number]) is not None
        return expired

    def evict(self) -> int:
        """Remove the oldest samples until the rest are within the limits; return how many."""
        evicted = 0
        while len(self._packed) > self._max_samples or self._bytes > self._max_bytes:
            self._remove(next(iter(self._packed)))
            evicted += 1
        return evicted

    def purge(self, ids: Collection[str]) -> int:
        """Remove the samples with these ids; return how many there were."""
        return sum(self._remove(name) is not None for name in list(ids))

    def forget_class(self, label: str) -> None:
        """Name the class in no prediction any more."""
        for name, each in self._packed.items():
            if each.entry.prediction.label == label:
                nameless = replace(each.entry, prediction=replace(each.entry.prediction, label=None))
                self._packed[name] = replace(each, entry=nameless)

    def state_dict(self) -> State:
        """Return the samples: facts as JSON, and compressed pixels (one flat uint8 array)."""
        packed = list(self._packed.values())
        return {
            "facts": [json.dumps(_facts(each.entry)) for each in packed],
            "sizes": np.array([len(each.pixels) for each in packed], np.int64),
            "pixels": np.frombuffer(b"".join(each.pixels for each in packed), np.uint8),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the store that returned `state`; an empty one empties it."""
        self._packed, self._bytes, start = {}, 0, 0
        self._names, self._times = {}, []
        pixels = np.asarray(state.get("pixels", ()), np.uint8).tobytes()
        for facts, size in zip(state.get("facts", ()), state.get("sizes", ()), strict=True):
            entry = _entry(json.loads(facts))
            self._add(entry.sample.id, entry, pixels[start : start + int(size)])
            start += int(size)

    def _add(self, name: str, entry: WaitingSample, pixels: PngBytes) -> None:
        number = next(self._numbers)
        self._packed[name] = _Packed(entry, pixels, number)
        self._names[number] = name
        self._bytes += len(pixels)
        if self._wait is not None and entry.time is not None:
            heapq.heappush(self._times, (entry.time, number))

    def _remove(self, name: str) -> _Packed | None:
        packed = self._packed.pop(name, None)
        if packed is not None:
            self._bytes -= len(packed.pixels)
            del self._names[packed.number]
            if len(self._times) > 2 * len(self._packed) + MAX_REMOVED_TIMES:
                self._times = [each for each in self._times if each[1] in self._names]
                heapq.heapify(self._times)
        return packed


def prediction_fields(made: Prediction) -> list[Any]:
    """Return the arguments that make a prediction, without those at their end that are not known."""
    facts = [made.stability, made.novelty, made.work]
    while facts and facts[-1] is None:
        facts.pop()
    return [made.label, made.confidence, *facts]


def _facts(entry: WaitingSample) -> list[Any]:
    sample, made = entry.sample, entry.prediction
    names = [sample.id, sample.subject, sample.domain, sample.privacy]
    assessed = prediction_fields(made)[2:]
    scored = [entry.scored] if entry.scored or assessed else []
    return [*names, entry.offset, made.label, made.confidence, entry.time, *scored, *assessed]


def _entry(facts: list[Any]) -> WaitingSample:
    name, subject, domain, privacy, offset, label, confidence, time, *further = facts
    sample = Sample(name, NO_PIXELS, None, subject, domain, privacy)
    made = Prediction(label, confidence, *further[1:])
    return WaitingSample(sample, offset, made, time, scored=bool(further[:1] == [True]))
