"""Observers of the loop: each is given every batch after its learning step, in the loop's order."""

from __future__ import annotations

from statistics import fmean

from streamcl.errors import NotFinite
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.processor.event_log import Counters, EventLog, Progress
from streamcl.processor.ports import LoopParts
from streamcl.processor.shift_handler import ShiftHandler
from streamcl.protocols import BatchRecord, Learner


class PredictionLog(Counters):
    """Writes the predictions of each batch, and an event for classes seen for the first time.

    classes: how many of the learner's classes have been announced.
    """

    COUNTERS = ("classes",)

    def __init__(self, log: EventLog, learner: Learner) -> None:
        self.classes = 0
        self._log, self._learner = log, learner

    def after_batch(self, record: BatchRecord) -> None:
        """Write the predictions that were not written yet, or not with their labels; announce new classes."""
        written = record.logged | record.corrected
        for prediction in record.predictions:
            if prediction.offset not in written:
                again = {"labelled_later": True} if prediction.offset in record.completed else {}
                held_out = {"held_out": True} if prediction.offset in record.held_out else {}
                self._log.write_prediction(prediction, **again, **held_out)
        if new := self._learner.classes[self.classes :]:
            self.classes += len(new)
            self._log.log("new_class", f"{len(new)} classes seen for the first time", classes=list(new))

    def recount(self) -> None:
        """Take the learner's classes as announced: an erasure may have removed some."""
        self.classes = len(self._learner.classes)


class StepMetricsLog:
    """Writes the figures of each step to the topic "metrics"."""

    def __init__(
        self,
        log: EventLog,
        learner: Learner,
        shift_handler: ShiftHandler,
        scores: Prequential,
        meter: Throughput,
    ) -> None:
        self._log, self._learner, self._shift_handler = log, learner, shift_handler
        self._scores, self._meter = scores, meter

    def after_batch(self, record: BatchRecord) -> None:
        """Write the figures of the step."""
        figures = {
            "loss": record.loss,
            "accuracy": self._scores.accuracy,
            "window_accuracy": self._scores.window_accuracy,
            "classes": len(self._learner.classes),
            "segment": self._shift_handler.segment,
            **self._meter.read(record.batch.end),
            **_mean_flip_probability(record),
        }
        self._log.write_metrics("step", figures)


def _mean_flip_probability(record: BatchRecord) -> dict[str, float]:
    """Return the mean probability that another model predicts another class; empty where none is known."""
    stable = [each.stability for each in record.predictions if each.stability is not None]
    return {"flip_probability": 1 - fmean(stable)} if stable else {}


class NonFiniteGuard(Counters):
    """Counts steps that were not finite, and ends the run when there are too many in a row.

    skipped: batches with a step that was not finite. skipped_in_a_row: of the latest ones those of which
    nothing was learned. limit: as many in a row raise NotFinite.
    """

    COUNTERS = ("skipped", "skipped_in_a_row")

    def __init__(self, log: EventLog, progress: Progress, limit: int) -> None:
        self.skipped = self.skipped_in_a_row = 0
        self._log, self._progress, self._limit = log, progress, limit

    def after_batch(self, record: BatchRecord) -> None:
        """Count and log a batch with a step that was not finite. Raise NotFinite where there are too many."""
        learned = len(record.result.learned)
        labelled = len(set(record.batch.labelled_offsets) - record.held_out)
        if record.not_finite:
            self.skipped += 1
            self.skipped_in_a_row += 1
            why = f"losses or gradients were not finite; {learned} of {labelled} samples were learned, "
            self._log.log("skipped", f"{why}{labelled - learned} were not")
        if learned or not record.not_finite:
            self.skipped_in_a_row = 0
        elif self.skipped_in_a_row >= self._limit:
            count, committed = self.skipped_in_a_row, self._progress.committed
            self._log.log("rollback", f"{count} steps in a row were not finite", to=committed)
            raise NotFinite(
                f"{count} steps in a row were not finite, up to offset {self._progress.offset}",
                hint="lower the learning rate or set precision: 32-true; "
                f"the same command then continues from offset {committed}",
            )


class HoldoutEvaluation(Counters):
    """Evaluates the learner when an evaluation is due; the accuracies go to the history and the log.

    Its confidences are fitted to the held-out samples first. Parts that bear a name which was erased are
    neither logged nor recorded.

    last_evaluated: the offset of the last evaluation; -1 before the first.
    """

    COUNTERS = ("last_evaluated",)

    def __init__(self, parts: LoopParts, learner: Learner, log: EventLog) -> None:
        self.last_evaluated = -1
        self._is_hidden, self._calibrate = parts.is_hidden_part, parts.calibrate
        self._evaluator, self._history, self._learner, self._log = (
            parts.evaluator,
            parts.history,
            learner,
            log,
        )

    def after_batch(self, record: BatchRecord) -> None:
        """Evaluate where an evaluation falls into the batch."""
        batch = record.batch
        if self._evaluator.due(batch.offset, batch.end):
            self._evaluate(batch.end)
        elif batch.end == batch.offset and (record.result.learned or record.corrected):
            # late labels, after the last record
            self.last_evaluated = min(self.last_evaluated, batch.end - 1)

    def after_erasure(self) -> None:
        """Log that the figures are older than an erasure, where they have become so."""
        if self._history.outdate():
            self._log.write_metrics("holdout_outdated", {})

    def finish(self, offset: int, *, trained: bool) -> None:
        """Evaluate at the end of the stream, where that is configured and was not just done.

        Args:
            offset: records that have passed.
            trained: whether the end has trained the learner, so that figures from before are not its own.
        """
        last = self.last_evaluated
        if (self._evaluator.at_stream_end and last < offset) or (trained and last == offset):
            self._evaluate(offset)

    def _evaluate(self, offset: int) -> None:
        self._calibrate()
        found = self._evaluator.evaluate(self._learner)
        self.last_evaluated = offset
        finished = self._evaluator.finished_parts(offset)
        parts = {name: figure for name, figure in found.parts.items() if not self._is_hidden(name)}
        error = found.calibration_error
        self._history.record(offset, parts, found.sizes, finished, found.accuracy, calibration_error=error)
        figures = {"accuracy": found.accuracy, "calibration_error": error, "parts": parts}
        self._log.write_metrics("holdout", figures)
