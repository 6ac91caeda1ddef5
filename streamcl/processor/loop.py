"""The streaming loop: takes events in order, predicts, learns, commits; observers do the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from streamcl.errors import ForgettingError, RefusedRequest
from streamcl.events import Batch, Event, ForgetRequest, Idle, PredictionRecord, Preview
from streamcl.processor.acknowledgement import SavedPositions
from streamcl.processor.arrivals import ArrivalPredictions, Heartbeat, OverloadLog
from streamcl.processor.event_log import EventLog, Progress, Quarantine
from streamcl.processor.late_labels import LateLabels
from streamcl.processor.observers import HoldoutEvaluation, NonFiniteGuard, PredictionLog, StepMetricsLog
from streamcl.processor.ports import BatchObserver, LoopParts, LoopPolicy
from streamcl.processor.schedule import CommitSchedule
from streamcl.processor.shift_handler import ShiftHandler
from streamcl.processor.step import StepRunner, predictions_of
from streamcl.protocols import BatchRecord, Learner, Source, State, Stateful
from streamcl.sources.hidden_labels import hide_labels
from streamcl.storage.rng_state import capture_generators, restore_generators

OPTIONAL_PARTS = frozenset({"arrivals", "overload", "labels", "held_out"})
"""Parts whose state is empty, and left out of checkpoints, but for some sources."""


class StreamProcessor:
    """Feeds a source's events to a learner, and each batch's outcome to the observers.

    Iterate `run()`, which yields one PredictionRecord per sample, made before the sample was learned. After
    each batch the sink has its records, the detector its loss, and where a plateau ends a segment the learner
    has consolidated. `commit` makes all of it durable at once; a process that dies is continued by `restore`
    with the state of its last commit, and gives the same remainder.

    Args:
        source: the stream.
        learner: learns it. Where it runs out of memory it must be as it was before the step; the batch is
            then learned in halves, down to single samples, of which one that does not fit is left out.
        parts: detector, metrics, sink and the like.
        policy: when to commit, and when to give up.
        environment: the machine and the software, for the event "start".
        generators: returns the state of the process-wide random generators as it was after the last event.
    """

    def __init__(
        self,
        source: Source,
        learner: Learner,
        parts: LoopParts,
        policy: LoopPolicy = LoopPolicy(),  # noqa: B008 - frozen
        *,
        environment: Mapping[str, Any] = MappingProxyType({}),
        generators: Callable[[], State] = capture_generators,
    ) -> None:
        self.source, self.learner, self.parts = source, learner, parts
        self._environment, self._generators = environment, generators
        self._position, self._random = source.state_dict(), generators()
        self.progress = progress = Progress()
        self._schedule = CommitSchedule(policy, progress, parts.clock, parts.agree)
        self._log = log = EventLog(parts.sink, progress)
        predict_only = parts.predict_only or learner.predict
        self._step = StepRunner(learner, log, predict_only)
        self.quarantine = Quarantine(log, policy.max_quarantined)
        self.guard = NonFiniteGuard(log, progress, policy.max_skipped)
        self.shift_handler = ShiftHandler(
            parts.detector,
            learner,
            log,
            progress,
            thumbnails=parts.thumbnails,
            relapse_tester=parts.relapse_tester,
            min_samples=policy.min_samples,
        )
        self._predictions = PredictionLog(log, learner)
        self._arrivals = ArrivalPredictions(predict_only, log)
        self.overload = OverloadLog(log)
        self.labels = LateLabels(parts.waiting, parts.corrections, log, parts.held_out)
        self._heartbeat = Heartbeat(progress, clock=parts.clock)
        self._saved = SavedPositions(source, parts.checkpoints)
        self._evaluation = HoldoutEvaluation(parts, learner, log)
        self._observers: tuple[BatchObserver, ...] = (
            parts.scores,
            *([] if parts.forgetting is None else [parts.forgetting]),
            self._predictions,
            self.guard,
            self.shift_handler,
            StepMetricsLog(log, learner, self.shift_handler, parts.scores, parts.meter),
            parts.held_out,
            self._evaluation,
            self._arrivals,
            self.overload,
            self.labels,
            self._heartbeat,
            *parts.observers,
        )

    def run(self) -> Iterator[PredictionRecord]:
        """Process every event that the source still has; commit when due, at a stop and at the end."""
        for predictions in self.steps():
            yield from predictions

    def steps(self) -> Iterator[tuple[PredictionRecord, ...]]:
        """Do as `run`, and yield the predictions of each event; none where a live source had nothing."""
        for event in self.source:
            self.forget()
            yield self.process(event)
            stopping = self.parts.stop.is_set  # a stop during this commit waits for the next one
            if stopping or (self._schedule.commit_due and not self.guard.skipped_in_a_row):
                self.commit()
            elif self._schedule.flush_due:
                self._flush()
            if stopping:
                return
        self.forget()
        if self.parts.stop.is_set:  # the source gave up waiting for an event
            self.commit()
            return
        self.finish()

    def process(self, event: Event) -> tuple[PredictionRecord, ...]:
        """Carry out one event, whatever its kind; return the predictions of a batch."""
        predictions: tuple[PredictionRecord, ...] = ()
        match event:
            case Batch():
                predictions = tuple(
                    each for part in self.labels.separated(event) for each in self._learn(part)
                )
            case ForgetRequest():
                if self.parts.request_intake is None:
                    raise ForgettingError(
                        f"request {event.id!r}: this run accepts no requests from its source"
                    )
                try:
                    self.parts.request_intake.submit_from_stream(event)
                except RefusedRequest as refused:
                    self._log.log("refused", str(refused))
            case Idle():
                self._heartbeat.idle()
            case Preview():
                predictions = self._arrivals.predict(self._filtered(event.batch))
        self._position, self._random = self.source.state_dict(), self._generators()
        return predictions

    def _filtered(self, batch: Batch) -> Batch:
        return batch if self.parts.forgetting is None else self.parts.forgetting.filter(batch)

    def _learn(self, batch: Batch) -> tuple[PredictionRecord, ...]:
        """Learn a batch; return the predictions of the records that were not predicted at their arrival."""
        batch = self._filtered(batch)
        self.quarantine.take(batch)
        attached = self.labels.attach(batch)
        batch, shown = attached.batch, self._arrivals.of(attached.batch)
        if attached.corrected:
            self._predictions.recount()
        held_out = self.parts.held_out.choose(batch)
        outcome = self._step.run(hide_labels(batch, held_out))
        earlier = {**shown, **attached.predictions}
        record = BatchRecord(
            batch,
            predictions_of(batch, outcome.result, earlier),
            outcome.result,
            outcome.loss,
            outcome.not_finite,
            self.shift_handler.segment,
            logged=frozenset(shown) - attached.completed,
            completed=(frozenset(shown) & attached.completed) | frozenset(attached.predictions),
            corrected=attached.corrected,
            held_out=held_out,
        )
        self.progress.advance(batch)
        for observer in self._observers:
            observer.after_batch(record)
        known = earlier.keys() | attached.corrected
        return tuple(each for each in record.predictions if each.offset not in known)

    def begin(self) -> None:
        """Start with empty logs and a first commit, so that there is always something to go back to."""
        self.parts.sink.load_state_dict({})
        if self.parts.forgetting is not None:
            self.parts.forgetting.load_state_dict({})
        info = self.source.info
        self._log.log(
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
        forgetting, erased = self.parts.forgetting, False
        for event in forgetting.before_batch(self.progress.offset) if forgetting is not None else ():
            if event.figures:
                self._log.write_event(event.kind, event.figures)
            if event.figures.get("outcome") == "done":
                self._evaluation.after_erasure()
            if event.to_commit:
                if event.figures:
                    self.shift_handler.after_erasure()
                self._arrivals.keep_classes(self.learner.classes)
                self._predictions.recount()
                self.commit()
                erased = True
        if erased:  # older checkpoints are gone
            self.acknowledge()

    def stop(self) -> None:
        """Ask `run` to end after the current event, with a commit. Safe to call from a signal handler."""
        self.parts.stop.set()

    @property
    def stopped(self) -> bool:
        """Whether the stream was left before its end because `stop` was called."""
        return self.parts.stop.is_set and not self.progress.finished

    def reopen(self) -> None:
        """Go on after the end: the stream has become longer."""
        self.progress.finished = False

    def commit(self) -> None:
        """Flush the sink, then make the state durable in one piece."""
        self._flush()
        if self.parts.forgetting is not None:
            self.parts.forgetting.commit()
        self._schedule.committed()
        self.progress.committed = self.progress.offset
        if self.parts.checkpoints is not None:
            saved = self.parts.checkpoints.save(self.progress.offset, self.progress.step, self.state_dict())
            self._saved.add(self.progress.step, self._position)
            if saved is not None:
                self._log.write_metrics("checkpoint", {"bytes": saved.bytes, "seconds": saved.seconds})
            self.acknowledge()

    def commit_pending(self) -> None:
        """Commit what has passed since the last commit, where it may be: not after steps that failed."""
        if self._schedule.has_uncommitted and not self.guard.skipped_in_a_row:
            self.commit()

    def acknowledge(self) -> None:
        """Let the source know the position of the oldest checkpoint: no restart goes back behind it."""
        self._saved.acknowledge()

    def state_dict(self) -> State:
        """Return the whole state; only "sinks" and "meter" depend on the clock."""
        parts = {name: part.state_dict() for name, part in self._stateful().items()}
        present = {name: part for name, part in parts.items() if part or name not in OPTIONAL_PARTS}
        return {"source": self._position, "random": self._random, **present}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the processor that returned `state`; the sink goes back to where it was then."""
        self.source.load_state_dict(state["source"])
        for name, part in self._stateful().items():
            part.load_state_dict(state.get(name, {}) if name in OPTIONAL_PARTS else state[name])
        self._position = self.source.state_dict()
        restore_generators(state["random"])
        self._random = state["random"]
        self._schedule.restored()
        self._saved.add(self.progress.step, self._position)

    def _stateful(self) -> dict[str, Stateful]:
        """Return the parts whose states are committed, in the order in which they are restored."""
        parts = self.parts
        optional = {"thumbnails": parts.thumbnails, "forgetting": parts.forgetting}
        return {
            "learner": self.learner,
            "detector": parts.detector,
            "scores": parts.scores,
            "history": parts.history,
            **{name: part for name, part in optional.items() if part is not None},
            "progress": self.progress,
            "quarantine": self.quarantine,
            "predictions": self._predictions,
            "arrivals": self._arrivals,
            "overload": self.overload,
            "labels": self.labels,
            "held_out": parts.held_out,
            "guard": self.guard,
            "shifts": self.shift_handler,
            "evaluation": self._evaluation,
            "sinks": parts.sink,
            "meter": parts.meter,
        }

    def _flush(self) -> None:
        self.parts.sink.flush()
        self._schedule.flushed()

    def finish(self) -> None:
        """Do what is due at the end of the stream: test erasures, evaluate, and commit."""
        self.quarantine.refuse_unused(self.source.info.name, self.progress.offset)
        trained = self.shift_handler.end_stream()
        self.forget()
        self._evaluation.finish(self.progress.offset, trained=trained)
        self.progress.finished = True
        self._log.log("end", "the stream ended")
        self.commit()
