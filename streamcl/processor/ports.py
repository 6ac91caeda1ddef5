"""The parts that the loop drives, and when it commits or gives up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.events import Batch, ForgetRequest, Prediction, Sample
from streamcl.memory.holdout_store import HoldoutStore
from streamcl.memory.waiting_samples import WaitingSamples
from streamcl.protocols import BatchRecord, CheckpointStore, ForgettingEvent, ShiftDetector, Sink, Stateful
from streamcl.storage.thumbnails import Thumbnails


class BatchObserver(Protocol):
    """A part of the loop that follows the batches."""

    def after_batch(self, record: BatchRecord) -> None:
        """Take a batch after its learning step."""


class Forgetting(Stateful, BatchObserver, Protocol):
    """Carries requests out between batches (see streamcl.forgetting.service.ForgettingService).

    Loading a state drops what was recorded after it; an empty one starts a new stream.
    """

    def before_batch(self, offset: int) -> Iterable[ForgettingEvent]:
        """Carry out what is due before the batch at `offset`; commit after an event that says so."""

    def filter(self, batch: Batch) -> Batch:
        """Return the batch without what was erased; such records keep their offsets and lose their ids."""

    def commit(self) -> None:
        """Make what was recorded durable, before the checkpoint that counts on it."""


class RequestIntake(Protocol):
    """Takes in requests that come with the stream."""

    def submit_from_stream(self, request: ForgetRequest) -> None:
        """Take in a request that the source has yielded; it is durable when this returns."""


class LabelCorrections(Protocol):
    """Takes samples out of what was learned, so that they can be learned under another label."""

    def learned_label(self, name: str) -> str | None:
        """Return the label under which the sample with this id was learned; None where it was not."""

    def take_out(self, ids: Sequence[str]) -> Sequence[tuple[int, Sample]]:
        """Take learned samples out of the learner, exactly; return each with its offset.

        Raise ForgettingError, with the learner as it was, where that is not possible for all of them.
        """


class RelapseTester(Protocol):
    """Tests after a shift, and at the end of the stream, that what was erased stays so."""

    def retest(self, offset: int) -> Iterable[ForgettingEvent]:
        """Test whether something erased has come back, and request its erasure anew."""


class StopSignal:
    """Asks a loop to end after the current event. May be set from a signal handler: it takes no lock."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        """Ask the loop to end."""
        self.is_set = True


def no_calibration() -> None:
    """Do nothing: the learner's confidences are fitted to no held-out samples."""


def no_hidden_part(name: str) -> bool:  # noqa: ARG001 - the signature is given
    """Return False: nothing has been erased, so no held-out part bears an erased name."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopParts:
    """The parts that the loop drives beside source and learner; their states are in its checkpoints.

    scores: test-then-train accuracy. evaluator, history: held-out accuracy. meter: speed and memory.
    thumbnails, checkpoints: None where the run keeps none.
    forgetting, request_intake, relapse_tester: None where the run cannot forget, takes no requests from its
        source, or does not test its erasures again; one object may have several of these roles.
    waiting, corrections: samples that wait for their labels, None where labels come with their records only;
        corrections of labels, None where nothing can be corrected.
    held_out: samples that are held out of the stream.
    stop: ends the loop; a source that several processes read may set it too.
    clock: returns the time in seconds; it decides when to commit and flush, and nothing that is learned.
    is_hidden_part: whether a held-out part bears a name that was erased.
    calibrate: fits the learner's confidences to the held-out samples, before each evaluation.
    predict_only: predicts samples that nothing is learned from at that moment, at their arrival or in an
        overload; None: the learner's `predict`.
    agree: returns the first rank's value of a decision that depends on the clock, on every rank.
    observers: given every batch after all others; they have no state, and change nothing.
    """

    detector: ShiftDetector
    scores: Prequential
    history: HoldoutHistory
    evaluator: HoldoutEvaluator
    meter: Throughput
    sink: Sink
    thumbnails: Thumbnails | None = None
    checkpoints: CheckpointStore | None = None
    forgetting: Forgetting | None = None
    request_intake: RequestIntake | None = None
    relapse_tester: RelapseTester | None = None
    waiting: WaitingSamples | None = None
    corrections: LabelCorrections | None = None
    held_out: HoldoutStore = field(default_factory=HoldoutStore)
    stop: StopSignal = field(default_factory=StopSignal)
    clock: Callable[[], float] = time.monotonic
    predict_only: Callable[[Sequence[Sample]], Sequence[Prediction]] | None = None
    agree: Callable[[bool], bool] = bool
    is_hidden_part: Callable[[str], bool] = no_hidden_part
    calibrate: Callable[[], None] = no_calibration
    observers: tuple[BatchObserver, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPolicy:
    """When the loop commits, and when it gives up.

    commit_every: records between two commits; None commits only at a stop and at the end.
    commit_seconds: seconds after a commit until the next, where records have been learned since; None: never.
    flush_seconds: seconds after which the sink is flushed; None flushes it with each commit.
    min_samples: samples whose mean loss the detector is given at least; smaller batches wait for the next.
    max_skipped: batches in a row of which nothing was learned, because numbers were not finite, after which
        NotFinite is raised. Nothing is committed since the first of them, so that the run goes back to a
        state that is older than whatever spoilt it.
    max_quarantined: rejected records in the whole run before SourceError is raised; None sets no limit.
    """

    commit_every: int | None = None
    commit_seconds: float | None = None
    flush_seconds: float | None = None
    min_samples: int = 1
    max_skipped: int = 10
    max_quarantined: int | None = None
