"""A source that follows a script, crashes included, and a learner that records consumed ids. No torch."""

# ruff: noqa: D102 - Source and Learner document the methods

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from streamcl.events import (
    Batch,
    Event,
    ForgetRequest,
    PlacedEvent,
    Prediction,
    RejectedRecord,
    Sample,
    StepResult,
    StreamInfo,
)
from streamcl.protocols import State


@dataclass(frozen=True, slots=True)
class Crash:
    """The process dies when the stream comes here: by SIGKILL, or by an exception that nothing should catch.

    Each crash happens once; the process that resumes passes it.
    """

    kind: Literal["kill", "exception"] = "exception"


class ScriptedCrash(BaseException):
    """Raised by Crash("exception"). Not an Exception, so that no retry or policy swallows it."""


@dataclass(frozen=True, slots=True)
class Stall:
    """The source waits `seconds` here, every time it is read."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Raise:
    """The source raises `error` the first `times` times that it is read here."""

    error: Exception
    times: int = 1


@dataclass(frozen=True, slots=True)
class Jump:
    """The source breaks its contract: it skips `records`, or yields the last -`records` again."""

    records: int


@dataclass(frozen=True, slots=True)
class Bad:
    """A batch whose records are all rejected."""

    records: int = 1
    reason: str = "scripted"


ScriptItem: TypeAlias = (
    int | Sequence[str | None] | Batch | ForgetRequest | Crash | Stall | Raise | Jump | Bad
)


class ScriptedSource:
    """A replayable source that yields what its script says, one item after the other.

    A number n is a batch of n samples, labels going round `classes`; a sequence of labels is a batch with
    those labels; a Batch or ForgetRequest is yielded as it is, moved to the present offset. The record at
    offset k has the id `record_id(k)` and an image that depends on nothing but k and the label, so what a
    learner consumed can be compared with what it should have (`streamcl.testing.each_exactly_once`).

    memory: a file in which crashes that happened are noted, so that they do not happen again to the process
        that resumes. Needed for Crash("kill"), or ValueError; not part of the run.
    """

    def __init__(
        self,
        script: Sequence[ScriptItem],
        *,
        classes: Sequence[str] = ("even", "odd"),
        size: int = 4,
        memory: Path | None = None,
        replayable: bool = True,
    ) -> None:
        if memory is None and Crash("kill") in script:
            raise ValueError('a script with Crash("kill") needs `memory`, a file to note the crash in')
        self._script = tuple(script)
        self._classes = tuple(classes)
        self._size = size
        self._memory = memory
        self._replayable = replayable
        self._happened: dict[int, int] = {}
        self._item = 0
        self._offset = 0

    @property
    def info(self) -> StreamInfo:
        """The length counts every record that the script yields, twice where it jumps back."""
        return StreamInfo("scripted", sum(_records(item) for item in self._script), self._classes)

    @property
    def replayable(self) -> bool:
        return self._replayable

    def __iter__(self) -> Iterator[Event]:
        while self._item < len(self._script):
            event = self._play(self._item)
            self._item += 1
            if event is not None:
                self._offset = event.end
                yield event

    def state_dict(self) -> State:
        return {"item": self._item, "offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._item, self._offset = int(state["item"]), int(state["offset"])

    def fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        """Yield samples by their ids, with the labels of batches that are given by number."""
        yield from (self._sample(int(name), self._label(int(name))) for name in ids if name.isdigit())

    def _play(self, index: int) -> PlacedEvent | None:
        match item := self._script[index]:
            case Crash() if self._happens(index, times=1):
                _crash(item)
            case Raise(error, times) if self._happens(index, times):
                raise error
            case Stall(seconds):
                time.sleep(seconds)
            case Jump(records):
                self._offset += records
            case Batch():
                return replace(item, offset=self._offset)
            case ForgetRequest():
                return item.model_copy(update={"offset": self._offset})
            case Bad(records, reason):
                numbers = range(self._offset, self._offset + records)
                return Batch(
                    self._offset, (), tuple(RejectedRecord(k, record_id(k), reason) for k in numbers)
                )
            case int():
                return self._batch([self._label(self._offset + k) for k in range(item)])
            case list() | tuple():
                return self._batch(item)
        return None

    def _happens(self, index: int, times: int) -> bool:
        """Return whether item `index` happens now, and count it."""
        if self._memory is not None and self._memory.exists():
            lines = self._memory.read_text().split()
            self._happened = {number: lines.count(str(number)) for number in map(int, lines)}
        if self._happened.get(index, 0) >= times:
            return False
        self._happened[index] = self._happened.get(index, 0) + 1
        if self._memory is not None:
            with self._memory.open("a") as notes:
                notes.write(f"{index}\n")
        return True

    def _batch(self, labels: Sequence[str | None]) -> Batch:
        first = self._offset
        return Batch(first, tuple(self._sample(first + k, label) for k, label in enumerate(labels)))

    def _label(self, offset: int) -> str:
        return self._classes[offset % len(self._classes)]

    def _sample(self, offset: int, label: str | None) -> Sample:
        shade = self._classes.index(label) if label in self._classes else len(self._classes)
        image = np.full((self._size, self._size, 3), (offset % 256, 40 * shade % 256, 0), np.uint8)
        return Sample(record_id(offset), image, label, subject=f"subject-{offset % 3}")


class FakeLearner:
    """A learner whose state is the ids it consumed, in order; it predicts the class it has seen most.

    loss: of a batch, in nats a sample; with NaN or infinity nothing is learned, as in a real learner.

    >>> learner = FakeLearner()
    >>> for batch in ScriptedSource([["ant", "ant"], ["bee"]]):
    ...     _ = learner.learn(batch)
    >>> learner.consumed, learner.classes, learner.predict(batch.samples)[0].label
    (['000000', '000001', '000002'], ('ant', 'bee'), 'ant')
    """

    def __init__(self, loss: Callable[[Batch], float] = lambda _: 1.0) -> None:
        self._loss = loss
        self._counts: dict[str, int] = {}
        self.consumed: list[str] = []
        self.consolidated: list[int] = []

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._counts)

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        known = {label: count for label, count in self._counts.items() if count}
        most = max(known, key=lambda label: known[label], default=None)
        share = 0.0 if most is None else known[most] / sum(known.values())
        return (Prediction(most, share),) * len(samples)

    def learn(self, batch: Batch) -> StepResult:
        predictions, loss = self.predict(batch.samples), self._loss(batch)
        losses = (loss,) * len(batch.labelled)
        if not np.isfinite(losses).all():
            return StepResult(predictions, losses, learned=())
        for sample in batch.labelled:
            label = str(sample.label)
            self._counts[label] = self._counts.get(label, 0) + 1
            self.consumed.append(sample.id)
        return StepResult(predictions, losses, learned=batch.labelled_offsets)

    def consolidate(self) -> Mapping[str, Any]:
        self.consolidated.append(len(self.consumed))
        return {"consumed": len(self.consumed)}

    def state_dict(self) -> State:
        return {
            "counts": dict(self._counts),
            "consumed": list(self.consumed),
            "consolidated": list(self.consolidated),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = dict(state["counts"])
        self.consumed = list(state["consumed"])
        self.consolidated = list(state["consolidated"])


def record_id(offset: int) -> str:
    """Return the id of the record at an offset of a scripted stream.

    >>> record_id(7)
    '000007'
    """
    return f"{offset:06d}"


def _records(item: ScriptItem) -> int:
    match item:
        case int():
            return item
        case Batch():
            return item.end - item.offset
        case Bad(records, _):
            return records
        case list() | tuple():
            return len(item)
    return 0


def _crash(crash: Crash) -> None:
    if crash.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ScriptedCrash
