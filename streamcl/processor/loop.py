"""The streaming loop: takes events in order, predicts, learns, watches, consolidates and commits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from streamcl.errors import ForgettingError
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.events import Batch, Event, ForgetRequest, PredictionRecord, StepResult
from streamcl.processor.event_log import EventLog
from streamcl.processor.ports import Forgetting, History, RunMeter, Scores, ThumbnailStore
from streamcl.processor.progress import Progress
from streamcl.processor.quarantine import Quarantine
from streamcl.processor.shift_handler import ShiftHandler
from streamcl.processor.step import StepRunner
from streamcl.protocols import CheckpointStore, Learner, ShiftDetector, Sink, Source, State
from streamcl.storage.rng_state import capture_generators, restore_generators


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
    max_skipped: batches in a row of which nothing was learned, because of numbers that were not finite, after
        which NotFinite is raised. Nothing is committed since the first of them, so that what the run goes
        back to is older than whatever spoilt it.
    max_quarantined: records set aside in the whole run before SourceError is raised; None sets no limit.
    A batch that memory is too short for is learned in halves, down to single samples, of which one that
    does not fit is left out; a learner that runs out of memory must be as it was before the step. The lineage
    is told of each sample whether it was learned.
    """

    def __init__(
        self,
        source: Source,
        learner: Learner,
        detector: ShiftDetector,
        *,
        scores: Scores,
        history: History,
        examiner: HoldoutEvaluator,
        pace: RunMeter,
        sink: Sink,
        gallery: ThumbnailStore | None = None,
        vault: CheckpointStore | None = None,
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
        self._journal = journal = EventLog(sink, self.progress)
        self._quarantine = Quarantine(self.progress, journal, max_quarantined)
        self._lessons = StepRunner(learner, self.progress, journal, max_skipped)
        self._segments = ShiftHandler(
            detector, learner, self.progress, journal, gallery=gallery, forgetter=forgetter, gather=gather
        )
        self._pace = pace
        self._sink = sink
        self._gallery = gallery
        self._vault = vault
        self._forgetter = forgetter
        self._commit_every = commit_every
        self._environment = environment
        self._generators = generators
        self._stopping = False
        self._position = source.state_dict()
        self._random = generators()

    def run(self) -> Iterator[PredictionRecord]:
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

    def process(self, event: Event) -> tuple[PredictionRecord, ...]:
        """Carry out one event, whatever its kind."""
        match event:
            case Batch():
                predictions = self._learn(event)
            case ForgetRequest():
                predictions = self._take_in(event)
        self._position = self.source.state_dict()
        self._random = self._generators()
        return predictions

    def begin(self) -> None:
        """Start with empty logs and a first commit, so that there is always something to go back to."""
        self._sink.load_state_dict({})
        if self._forgetter is not None:
            self._forgetter.begin()
        info = self.source.info
        self._journal.log(
            "start",
            info.name,
            replayable=self.source.replayable,
            length=info.length,
            shifts=list(info.shifts),
            environment=dict(self._environment),
        )
        self.commit()

    def forget(self) -> None:
        """Carry out the requests that are due, each with a commit of its own."""
        forgetter = self._forgetter
        for figures in forgetter.overdue() if forgetter is not None else ():
            self._journal.log(
                "overdue", "the deadline of a request has passed, and it is not carried out", **figures
            )
        for request in forgetter.pending(self.progress.offset) if forgetter is not None else ():
            assert forgetter is not None
            if (done := forgetter.erase(request, self.progress.offset)) is not None:
                self._journal.log("forget", **done)
                self._segments.erased()
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
                self._journal.write_metrics("checkpoint", figures)

    def state_dict(self) -> State:
        """All that decides the future; what the clock decides is under "sinks" and "pace"."""
        parts: State = {name: part.state_dict() for name, part in self._parts().items()}
        return {
            **parts,
            "source": self._position,
            "progress": self.progress.state_dict(),
            "random": self._random,
            "sinks": self._sink.state_dict(),
            "pace": self._pace.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the processor that returned `state`; the sink goes back to where it was then."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.progress.load_state_dict(state["progress"])
        self._sink.load_state_dict(state["sinks"])
        self._pace.load_state_dict(state["pace"])
        self._position = self.source.state_dict()
        if self._forgetter is not None:
            self._forgetter.truncate(self.progress.offset)
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

    def _take_in(self, request: ForgetRequest) -> tuple[PredictionRecord, ...]:
        if self._forgetter is None:
            raise ForgettingError(f"request {request.id!r}: this run cannot forget")
        self._forgetter.submit(request)
        return ()

    def _learn(self, batch: Batch) -> tuple[PredictionRecord, ...]:
        before = self.progress.offset
        if self._forgetter is not None:
            batch = self._forgetter.admit(batch)
        self._quarantine.take(batch)
        outcome = self._lessons.run(batch)
        lesson = outcome.lesson
        predictions = _predictions(batch, lesson)
        self.scores.update(predictions, [sample.domain for sample in batch.samples])
        self.progress.step += 1
        self.progress.offset = batch.end
        if self._forgetter is not None:
            self._forgetter.note(batch, learned=lesson.learned, segment=self.progress.segment)
        self._journal.write_predictions(predictions)
        self._announce_classes()
        loss = self._lessons.mean_loss(outcome)
        if loss is not None and math.isfinite(loss):
            self._segments.watch(batch.samples, predictions, lesson)
        self._journal.write_step(loss, self.scores, self._pace.read(self.progress.offset))
        if self.examiner.due(before, batch.end):
            self._examine()
        return predictions

    def _announce_classes(self) -> None:
        fresh = self.learner.classes[self.progress.classes :]
        if fresh:
            self.progress.classes += len(fresh)
            self._journal.log(
                "new_class", f"{len(fresh)} classes seen for the first time", classes=list(fresh)
            )

    def _examine(self) -> None:
        result = self.examiner.evaluate(self.learner)
        offset = self.progress.offset
        self.progress.last_evaluated = offset
        self.history.record(
            offset, result.parts, result.sizes, self.examiner.finished_parts(offset), result.accuracy
        )
        self._journal.write_metrics("holdout", {"accuracy": result.accuracy, "parts": result.parts})

    def _commit_due(self) -> bool:
        every, progress = self._commit_every, self.progress
        due = every is not None and progress.offset // every != progress.committed // every
        return due and not progress.skipped_in_a_row

    def _finish(self) -> None:
        self._segments.retest()
        self.forget()
        if self.examiner.final and self.progress.last_evaluated < self.progress.offset:
            self._examine()
        self.progress.finished = True
        self._journal.log("end", "the stream ended")
        self.commit()


def _predictions(batch: Batch, lesson: StepResult) -> tuple[PredictionRecord, ...]:
    return tuple(
        PredictionRecord(sample.id, offset, sample.label, guess.label, guess.confidence)
        for offset, sample, guess in zip(batch.offsets, batch.samples, lesson.predictions, strict=True)
    )
