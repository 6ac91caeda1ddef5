"""The extension points, each a Protocol of a few methods."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from streamcl.events import Batch, Event, Prediction, PredictionRecord, Sample, StepResult, StreamInfo

State: TypeAlias = dict[str, Any]
"""Everything that decides an object's future: nested dicts with string keys whose leaves are numpy arrays,
str, int, float, bool, None, or lists of those. Never tensors on a device, never pickles."""

Rollback: TypeAlias = Callable[[], None]
"""Restores the state of a savepoint, bit for bit."""


def savepoint_of(owner: object, *names: str, parts: Sequence[Rollback] = ()) -> Rollback:
    """Return a callable that restores these attributes, after the savepoints of the owner's parts.

    The attributes' values are replaced and never written to.
    """
    before = {name: getattr(owner, name) for name in names}

    def restore() -> None:
        for part in parts:
            part()
        for name, value in before.items():
            setattr(owner, name, value)

    return restore


class Stateful(Protocol):
    """An object whose future is decided by the state that `state_dict` returns."""

    def state_dict(self) -> State:
        """Return a copy of the state; later changes of the object do not reach into it.

        A read-only array will not change. A large one is not written again by each checkpoint, and is loaded
        read-only.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the object that returned `state`, bit-equal from there on."""


@runtime_checkable
class Source(Stateful, Protocol):
    """A stream of events with offsets that never fall.

    Iterating yields the events from the present position on. `state_dict` returns the position after the last
    event yielded; it is called after every event, so it must be cheap. `replayable` is whether a new process
    that loads that state yields the same remaining events; where it is False, a run cannot be resumed.

    Optional powers have Protocols of their own: `Fetching`, `Peekable`, `Sliceable`, `Shardable`.
    """

    @property
    def info(self) -> StreamInfo: ...

    @property
    def replayable(self) -> bool: ...

    def __iter__(self) -> Iterator[Event]: ...


Fetch: TypeAlias = Callable[[Sequence[str]], Generator[Sample, None, None]]
"""Yields the samples with these ids that still exist; where several have the same id, each of them.

It is closed before its end where no more is needed.
"""


@runtime_checkable
class Fetching(Protocol):
    """A source that returns samples by their ids, for erasures that must compute their features again."""

    @property
    def fetch(self) -> Fetch | None:
        """A method, or None where the source cannot fetch (a stream that is read once)."""


def fetch_of(source: Source) -> Fetch | None:
    """Return the source's `fetch`, or None where it has none."""
    return source.fetch if isinstance(source, Fetching) else None


@runtime_checkable
class Peekable(Protocol):
    """A source that can return the next events without advancing."""

    def peek(self, records: int) -> Sequence[Event]:
        """Return the next events, of at least `records` records or to the end; the position stays."""


@runtime_checkable
class Sliceable(Protocol):
    """A source that decodes a slice of the records when several ranks read the same stream."""

    def read_slice(self, rank: int, world: int) -> None:
        """From here on decode only records at offsets `rank` modulo `world`; the others have no pixels."""


@runtime_checkable
class Shardable(Protocol):
    """A source that is divided into shards, of which every rank reads its own."""

    @property
    def has_shards(self) -> bool:
        """Whether `shard` can be called."""

    def shard(self, rank: int, world: int, batch_size: int) -> Source:
        """Return the source of shard `rank` of `world`."""


class Collective(Protocol):
    """The processes, called ranks, that one run is spread over (see streamcl.distributed.process_group)."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def world_size(self) -> int:
        """The number of ranks."""

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the `value` that each rank passed, in the order of ranks; all call it at the same point."""


class Learner(Stateful, Protocol):
    """A model that learns from a stream one batch at a time. Classes are open: a new label grows it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, in the order in which they were first learned."""

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """Return one prediction per sample; change no state."""

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then take one learning step on its labelled samples (test-then-train).

        `StepResult.learned` holds the offsets of the learned samples: `batch.labelled_offsets`, or () where
        losses or gradients are not finite and nothing is learned. Where memory runs out, raise, and leave the
        state as it was.
        """

    def consolidate(self) -> Mapping[str, Any]:
        """Merge the adapters into the weights and begin new ones; outputs do not change.

        Return figures for the log; none where the learner has nothing to consolidate.
        """


@runtime_checkable
class EndOfStreamLearner(Protocol):
    """A learner that has something to do when its stream ends; it may go on learning later."""

    def end_stream(self, offset: int) -> Mapping[str, Any]:
        """Do it at the offset where the stream ends; return figures for the log, none if nothing was due."""


@runtime_checkable
class ProbabilisticLearner(Protocol):
    """A learner that computes the probability of every class."""

    def logits(self, samples: Sequence[Sample]) -> Any:
        """Return a tensor [B, C] for B >= 1 samples, with the columns of `classes`; change no state.

        Its softmax gives the probabilities; minus infinity is a class that cannot be predicted.
        """


class ShiftDetector(Stateful, Protocol):
    """Finds shifts and plateaus in the loss of the stream, one finite value a batch.

    A segment runs from one shift to the next. At most one shift and one plateau are reported a segment.
    """

    def update(self, loss: float) -> None:
        """Take the mean data loss (nats) of one batch. Raise ValueError for NaN and infinity."""

    @property
    def shift(self) -> str | None:
        """The reason why the last update shows a change of the distribution, or None."""

    @property
    def plateau(self) -> str | None:
        """The reason why the learner should consolidate after the last update, or None."""


@runtime_checkable
class FeatureShiftDetector(Protocol):
    """A detector that also reads features, where the learner returns some of frozen weights."""

    def look(self, features: npt.NDArray[Any]) -> None:
        """Take features [B, d] of samples whose loss comes with the next update."""

    def drop_features(self) -> None:
        """Delete all that was computed from features, after a request to forget."""


@runtime_checkable
class LabelShiftDetector(Protocol):
    """A detector that also reads the labels of the samples that were learned."""

    def look_at_labels(self, labels: Sequence[str]) -> None:
        """Take the labels of the samples whose losses come with the next update, in their order."""

    def drop_labels(self) -> None:
        """Delete all that was computed from labels, after a request to forget."""


class Sink(Stateful, Protocol):
    """Stores or sends records. Delivery is at-least-once across a crash, keyed by (run id, step).

    `topic` is "predictions", "metrics", "events" or "quarantine"; a record is a flat JSON object. The state
    is the position after the last flushed record; loading it discards what a crash left after that position.
    """

    def write(self, topic: str, record: Mapping[str, Any]) -> None: ...

    def flush(self) -> None:
        """Make everything written so far survive a crash."""

    def close(self) -> None: ...


class CheckpointStore(Protocol):
    """Stores checkpoints (see streamcl.storage.checkpoint.Checkpoints)."""

    def save(self, offset: int, step: int, state: State) -> Any:
        """Make the state durable, now or soon; return a `SavedCheckpoint` that is durable, or None."""

    def oldest_step(self) -> int | None:
        """Return the step of the oldest checkpoint, to which a restart may go back; None without one."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch after its learning step, for the observers of the loop.

    batch: without the samples that were forgotten before it was read.
    predictions: one per sample, made before the step.
    result: the learner's; where the batch was split, of all its steps together.
    loss: mean of `result.losses`, in nats, possibly NaN or infinity; None where there are none, or where
        nothing was learned because numbers were not finite.
    not_finite: how many labelled samples were not learned because losses or gradients of their step were
        not finite; others that were not learned did not fit into memory.
    segment: detected shifts before this batch.
    logged: offsets whose predictions were made, and logged with the sample's label, at arrival.
    completed: offsets whose predictions were logged before, without the label that came with this batch.
    corrected: offsets of samples that were learned under another label before, and scored then.
    held_out: offsets of labelled samples that are never learned, so that accuracy can be measured on them.
    """

    batch: Batch
    predictions: tuple[PredictionRecord, ...]
    result: StepResult
    loss: float | None
    not_finite: int
    segment: int
    logged: frozenset[int] = frozenset()
    completed: frozenset[int] = frozenset()
    corrected: frozenset[int] = frozenset()
    held_out: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ForgettingEvent:
    """An action of forgetting, for the run's log.

    kind: "forget", "overdue", "retest" or "relapse". figures: to log, without names of samples; empty where
    they were logged before a crash. to_commit: the state has changed and is to be committed now.
    """

    kind: str
    figures: Mapping[str, Any]
    to_commit: bool = False
