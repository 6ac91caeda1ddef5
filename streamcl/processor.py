"""The streaming loop: takes events in order, predicts, learns, watches, consolidates and commits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any, Protocol

from streamcl.errors import ForgettingError, NotFinite, SourceError
from streamcl.evaluation import Examiner
from streamcl.events import Batch, Event, ForgetRequest, Guess, Lesson, Prediction, Sample
from streamcl.protocols import Learner, ShiftDetector, Sink, Source, State, Stateful
from streamcl.randomness import capture_generators, restore_generators

REMEMBERED = 1000
"""Offsets of shifts, and of consolidations, that a run's state holds; events.jsonl has all of them."""


@dataclass(slots=True)
class Progress:
    """How far a run has come. Offsets count records; `segment` counts detected shifts.

    shifts, consolidations: the offsets of the newest; `segment` and `consolidated` count all there were.
    gathered: losses of samples, too few so far for the detector.
    """

    offset: int = 0
    step: int = 0
    segment: int = 0
    classes: int = 0
    quarantined: int = 0
    dropped: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    gathered: list[float] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    consolidations: list[int] = field(default_factory=list)
    consolidated: int = 0
    committed: int = 0
    examined: int = -1
    finished: bool = False


class Scores(Stateful, Protocol):
    """Prequential figures (see streamcl.metrics.Prequential)."""

    def update(self, predictions: Sequence[Prediction], domains: Sequence[str | None]) -> None:
        """Count the predictions; `domains` names each one's domain."""
        ...

    @property
    def accuracy(self) -> float | None:
        """Since the beginning."""
        ...

    @property
    def window_accuracy(self) -> float | None:
        """Lately."""
        ...


class History(Stateful, Protocol):
    """Held-out accuracies over time (see streamcl.metrics.HoldoutHistory)."""

    def record(
        self,
        offset: int,
        accuracies: Mapping[str, float],
        sizes: Mapping[str, int],
        taught: Sequence[str],
        seen: float | None,
    ) -> None:
        """Take one examination; `seen` is the accuracy over the classes seen so far."""
        ...


class Keeper(Stateful, Protocol):
    """Keeps thumbnails of samples around shifts (see streamcl.gallery.Gallery)."""

    def keep(self, offset: int, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> None:
        """Keep some of the samples of the batch that showed a shift."""
        ...


class Forgetting(Stateful, Protocol):
    """Carries requests out between batches (see streamcl.forgetting.forgetter.Forgetter)."""

    def submit(self, request: ForgetRequest) -> None:
        """Take in a request; it is durable when this returns."""
        ...

    def pending(self, offset: int) -> Sequence[ForgetRequest]:
        """What is to be carried out before the batch at `offset`."""
        ...

    def overdue(self) -> Sequence[Mapping[str, Any]]:
        """What to log of requests whose deadline has passed, each once."""
        ...

    def erase(self, request: ForgetRequest, offset: int) -> Mapping[str, Any] | None:
        """Erase in memory, or change nothing; what to log, None where that was done before a crash."""
        ...

    def retest(self, offset: int) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Test whether something erased has come back, and ask for its erasure anew; what to log, by kind."""
        ...

    def seal(self, request: ForgetRequest) -> None:
        """After the commit: leave nothing older behind, and write the receipt."""
        ...

    def admit(self, batch: Batch) -> Batch:
        """The batch without what was forgotten; such records keep their offsets and lose their ids."""
        ...

    def note(self, batch: Batch, *, learned: bool, segment: int) -> None:
        """Remember what has passed."""
        ...

    def flush(self) -> None:
        """Make what was noted durable."""
        ...

    def begin(self) -> None:
        """Start with a stream of which nothing has passed."""
        ...

    def rewind(self, offset: int) -> None:
        """Give up what was noted at or after an offset."""
        ...


class Vault(Protocol):
    """Where checkpoints go (see streamcl.checkpoint.Checkpoints)."""

    def save(self, offset: int, step: int, state: State) -> Any:
        """Make the state durable, now or soon; returns size and time of one that is, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """What the clock says of a run so far; part of no state."""

    images_per_s: float | None
    seconds: float
    memory_mb: float


class Watch(Stateful, Protocol):
    """Looks at the clock for the metrics; what it reads decides nothing."""

    def read(self, images: int) -> Pace:
        """The figures once `images` records have passed."""
        ...


class StreamProcessor:
    """Feeds a source's events to a learner; everything else watches.

    Iterate `run()`, which yields one Prediction per sample, made before the sample was learned. After each
    batch: the sink has its records, the detector its loss, and where a plateau ends a segment the learner
    has consolidated. `commit` makes all of it durable at once; a process that dies is continued by
    `restore` with the state of its last commit, and gives the same remainder.

    pace: reads the clock; its figures go to the sinks and decide nothing.
    environment: what the "start" event says of the machine and the software.
    generators: the process-wide random generators as they were after the last event handed out.
    gather: samples whose mean loss the detector is given at least; smaller batches wait for the next one.
    max_skipped: non-finite steps in a row after which NotFinite is raised. Nothing is committed since the
        first of them, so that what the run goes back to is older than whatever spoilt it.
    max_quarantined: records set aside in the whole run before SourceError is raised; None sets no limit.
    A batch that memory is too short for is learned in halves, down to single samples, of which one that
    does not fit is left out; a learner that runs out of memory must be as it was before the step.
    """

    def __init__(
        self,
        source: Source,
        learner: Learner,
        detector: ShiftDetector,
        *,
        scores: Scores,
        history: History,
        examiner: Examiner,
        pace: Watch,
        sink: Sink,
        gallery: Keeper | None = None,
        vault: Vault | None = None,
        forgetter: Forgetting | None = None,
        commit_every: int | None = None,
        gather: int = 1,
        max_skipped: int = 10,
        max_quarantined: int | None = None,
        environment: Mapping[str, Any] = MappingProxyType({}),
        generators: Callable[[], State] = capture_generators,
    ) -> None:
        self.source = source
        self.learner = learner
        self.detector = detector
        self.scores = scores
        self.history = history
        self.examiner = examiner
        self.progress = Progress()
        self._pace = pace
        self._sink = sink
        self._gallery = gallery
        self._vault = vault
        self._forgetter = forgetter
        self._commit_every = commit_every
        self._gather = gather
        self._max_skipped = max_skipped
        self._max_quarantined = max_quarantined
        self._environment = environment
        self._generators = generators
        self._stopping = False
        self._position = source.state_dict()
        self._random = generators()

    def run(self) -> Iterator[Prediction]:
        """Process every event that the source still has; commit when due, at a stop and at the end."""
        for event in self.source:
            self.forget()
            yield from self.process(event)
            if self._stopping or self._commit_due():
                self.commit()
            if self._stopping:
                return
        self.forget()
        if self._stopping:  # the source gave up waiting for an event
            self.commit()
            return
        self._finish()

    def begin(self) -> None:
        """Start with empty logs and a first commit, so that there is always something to go back to."""
        self._sink.load_state_dict({})
        if self._forgetter is not None:
            self._forgetter.begin()
        info = self.source.info
        self._log(
            "start",
            info.name,
            replayable=self.source.replayable,
            length=info.length,
            shifts=list(info.shifts),
            environment=dict(self._environment),
        )
        self.commit()

    def process(self, event: Event) -> tuple[Prediction, ...]:
        """Carry out one event, whatever its kind."""
        match event:
            case Batch():
                predictions = self._learn(event)
            case ForgetRequest():
                predictions = self._take_in(event)
        self._position = self.source.state_dict()
        self._random = self._generators()
        return predictions

    def forget(self) -> None:
        """Carry out the requests that are due, each with a commit of its own."""
        forgetter = self._forgetter
        for figures in forgetter.overdue() if forgetter is not None else ():
            self._log("overdue", "the deadline of a request has passed, and it is not carried out", **figures)
        for request in forgetter.pending(self.progress.offset) if forgetter is not None else ():
            assert forgetter is not None
            if (done := forgetter.erase(request, self.progress.offset)) is not None:
                self._log("forget", **done)
            self.progress.classes = len(self.learner.classes)
            self.commit()
            forgetter.seal(request)
            self._sink.load_state_dict(self._sink.state_dict())  # the logs were written anew

    def stop(self) -> None:
        """Ask `run` to end after the event in hand, with a commit. Safe to call from a signal handler."""
        self._stopping = True

    @property
    def stopped(self) -> bool:
        """Whether the stream was left before its end because `stop` was called."""
        return self._stopping and not self.progress.finished

    def commit(self) -> None:
        """Flush the sink, then make the state durable in one piece."""
        self._sink.flush()
        if self._forgetter is not None:
            self._forgetter.flush()
        self.progress.committed = self.progress.offset
        if self._vault is not None:
            saved = self._vault.save(self.progress.offset, self.progress.step, self.state_dict())
            if saved is not None:
                figures = {"bytes": saved.bytes, "seconds": saved.seconds}
                self._write("metrics", {"kind": "checkpoint", **self._place(), **figures})

    def state_dict(self) -> State:
        """All that decides the future; what the clock decides is under "sinks" and "pace"."""
        parts: State = {name: part.state_dict() for name, part in self._parts().items()}
        return {
            **parts,
            "source": self._position,
            "progress": asdict(self.progress),
            "random": self._random,
            "sinks": self._sink.state_dict(),
            "pace": self._pace.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the processor that returned `state`; the sink goes back to where it was then."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.progress = Progress(**state["progress"])
        self._sink.load_state_dict(state["sinks"])
        self._pace.load_state_dict(state["pace"])
        self._position = self.source.state_dict()
        if self._forgetter is not None:
            self._forgetter.rewind(self.progress.offset)
        restore_generators(state["random"])
        self._random = state["random"]

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "source": self.source,
            "learner": self.learner,
            "detector": self.detector,
            "scores": self.scores,
            "history": self.history,
        }
        optional = {"gallery": self._gallery, "forgetter": self._forgetter}
        return parts | {name: part for name, part in optional.items() if part is not None}

    def _take_in(self, request: ForgetRequest) -> tuple[Prediction, ...]:
        if self._forgetter is None:
            raise ForgettingError(f"request {request.id!r}: this run cannot forget")
        self._forgetter.submit(request)
        return ()

    def _learn(self, batch: Batch) -> tuple[Prediction, ...]:
        before = self.progress.offset
        if self._forgetter is not None:
            batch = self._forgetter.admit(batch)
        self._quarantine(batch)
        lesson = self._teach(batch)
        predictions = _predictions(batch, lesson)
        self.scores.update(predictions, [sample.domain for sample in batch.samples])
        self.progress.step += 1
        self.progress.offset = batch.end
        if self._forgetter is not None:
            self._forgetter.note(batch, learned=lesson.learned, segment=self.progress.segment)
        self._write_predictions(predictions)
        self._announce_classes()
        loss = self._watch(lesson)
        if loss is not None and math.isfinite(loss):
            self._gather_losses(batch, predictions, lesson.losses)
        self._write_step(loss)
        if self.examiner.due(before, batch.end):
            self._examine()
        return predictions

    def _quarantine(self, batch: Batch) -> None:
        named = [refused for refused in batch.refused if refused.id]  # a forgotten record has no id any more
        self.progress.quarantined += len(named)
        self.progress.dropped += len(batch.refused) - len(named)
        for refused in named:
            self._write("quarantine", {"offset": refused.offset, "id": refused.id, "reason": refused.reason})
        limit = self._max_quarantined
        if limit is not None and self.progress.quarantined > limit:
            last = f": {named[-1].reason}" if named else ""
            raise SourceError(
                f"{self.progress.quarantined} records were set aside up to offset {batch.end}, "
                f"{limit} are allowed; the last{last}",
                hint="quarantine.jsonl names them; source.policy.max_quarantined sets the limit",
            )

    def _teach(self, batch: Batch) -> Lesson:
        """Let the learner have the batch, or its halves one after the other where memory is too short."""
        try:
            return self.learner.learn(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        if len(batch) <= 1:
            self._log("skipped", "memory is too short for one sample; it was not learned")
            return Lesson((Guess(None, 0.0),) * len(batch), ())
        self._log("split", f"memory is too short for {len(batch)} samples; they are learned in halves")
        half = len(batch) // 2
        first = self._teach(Batch(batch.offset, batch.samples[:half]))
        second = self._teach(Batch(batch.offset + half, batch.samples[half:]))
        losses, learned = first.losses + second.losses, first.learned and second.learned
        return Lesson(first.guesses + second.guesses, losses, learned)

    def _watch(self, lesson: Lesson) -> float | None:
        """The batch's mean loss where it may reach the detector; counts the steps that were not finite."""
        if not lesson.learned:
            self._skip()
            return None
        self.progress.skipped_in_a_row = 0
        return fmean(lesson.losses) if lesson.losses else None

    def _skip(self) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        self._log("skipped", "losses or gradients were not finite; nothing was learned")
        count = self.progress.skipped_in_a_row
        if count >= self._max_skipped:
            self._log("rollback", f"{count} steps in a row were not finite", to=self.progress.committed)
            raise NotFinite(
                f"{count} steps in a row were not finite, up to offset {self.progress.offset}",
                hint="lower the learning rate or set precision: 32-true; "
                f"the same command then goes on from offset {self.progress.committed}",
            )

    def _gather_losses(
        self, batch: Batch, predictions: Sequence[Prediction], losses: Sequence[float]
    ) -> None:
        """Settle once there are losses of enough samples: a mean of few is mostly noise."""
        gathered = [*self.progress.gathered, *losses]
        enough = len(gathered) >= self._gather
        self.progress.gathered = [] if enough else gathered
        if enough:
            self._settle(batch, predictions, fmean(gathered))

    def _settle(self, batch: Batch, predictions: Sequence[Prediction], loss: float) -> None:
        """Give the detector its loss and act on what it says."""
        self.detector.update(loss)
        if (reason := self.detector.shift) is not None:
            self.progress.segment += 1
            self.progress.shifts = _newest(self.progress.shifts, batch.end)
            self._log("shift", reason, loss=loss)
            if self._gallery is not None:
                self._gallery.keep(batch.end, batch.samples, predictions)
            self._retest()
        if (reason := self.detector.plateau) is not None:
            if figures := self.learner.consolidate():
                self.progress.consolidated += 1
                self.progress.consolidations = _newest(self.progress.consolidations, batch.end)
            self._log("consolidation" if figures else "plateau", reason, loss=loss, **figures)

    def _announce_classes(self) -> None:
        fresh = self.learner.classes[self.progress.classes :]
        if fresh:
            self.progress.classes += len(fresh)
            self._log("new_class", f"{len(fresh)} classes seen for the first time", classes=list(fresh))

    def _examine(self) -> None:
        result = self.examiner.examine(self.learner)
        offset = self.progress.offset
        self.progress.examined = offset
        self.history.record(offset, result.parts, result.sizes, self.examiner.taught(offset), result.accuracy)
        self._write(
            "metrics",
            {"kind": "holdout", **self._place(), "accuracy": result.accuracy, "parts": result.parts},
        )

    def _commit_due(self) -> bool:
        every, progress = self._commit_every, self.progress
        due = every is not None and progress.offset // every != progress.committed // every
        return due and not progress.skipped_in_a_row

    def _retest(self) -> None:
        """Look whether something erased has come back; it is erased again before the next batch."""
        if self._forgetter is not None:
            for kind, figures in self._forgetter.retest(self.progress.offset):
                self._write("events", {"kind": kind, **self._place(), **figures})

    def _finish(self) -> None:
        self._retest()
        self.forget()
        if self.examiner.final and self.progress.examined < self.progress.offset:
            self._examine()
        self.progress.finished = True
        self._log("end", "the stream ended")
        self.commit()

    def _place(self) -> dict[str, int]:
        return {"step": self.progress.step, "offset": self.progress.offset}

    def _write_predictions(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            self._write("predictions", {"step": self.progress.step, **asdict(prediction)})

    def _write_step(self, loss: float | None) -> None:
        record = {
            "kind": "step",
            **self._place(),
            "loss": loss,
            "accuracy": self.scores.accuracy,
            "window_accuracy": self.scores.window_accuracy,
            "classes": self.progress.classes,
            "segment": self.progress.segment,
            **asdict(self._pace.read(self.progress.offset)),
        }
        self._write("metrics", record)

    def _log(self, kind: str, reason: str, **figures: Any) -> None:
        self._write("events", {"kind": kind, **self._place(), "reason": reason, **figures})

    def _write(self, topic: str, record: Mapping[str, Any]) -> None:
        self._sink.write(topic, record)


def _newest(offsets: Sequence[int], offset: int) -> list[int]:
    """The offsets with one more, without the oldest where they would be more than REMEMBERED."""
    return [*offsets, offset][-REMEMBERED:]


def _is_out_of_memory(error: Exception) -> bool:
    """Python's MemoryError, torch's OutOfMemoryError, or the RuntimeError of its allocator for the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _predictions(batch: Batch, lesson: Lesson) -> tuple[Prediction, ...]:
    gone = {refused.offset for refused in batch.refused}
    offsets = (offset for offset in range(batch.offset, batch.end) if offset not in gone)
    return tuple(
        Prediction(sample.id, offset, sample.label, guess.label, guess.confidence)
        for offset, sample, guess in zip(offsets, batch.samples, lesson.guesses, strict=True)
    )
