"""Acts on detected shifts and plateaus: thumbnails and tests of erasures, or consolidation."""

from __future__ import annotations

import math
from statistics import fmean

from streamcl.processor.event_log import Counters, EventLog, Progress
from streamcl.processor.ports import RelapseTester
from streamcl.protocols import (
    BatchRecord,
    EndOfStreamLearner,
    FeatureShiftDetector,
    LabelShiftDetector,
    Learner,
    ShiftDetector,
)
from streamcl.storage.thumbnails import Thumbnails

MAX_OFFSETS_IN_STATE = 1000
"""Offsets of shifts, and of consolidations, that a run's state holds: some 10 kB; events.jsonl has all."""


class ShiftHandler(Counters):
    """Gives the detector its losses and acts on a shift or a plateau.

    min_samples: the detector is given the mean loss of at least so many samples (a mean of few is mostly
        noise); fewer wait for those of the next batch.
    segment, consolidated: how many shifts were detected, and how many plateaus were consolidated at.
    shifts, consolidations: the offsets of the newest of them.
    """

    COUNTERS = ("segment", "shifts", "consolidated", "consolidations", "pending_losses")

    def __init__(
        self,
        detector: ShiftDetector,
        learner: Learner,
        log: EventLog,
        progress: Progress,
        *,
        thumbnails: Thumbnails | None,
        relapse_tester: RelapseTester | None,
        min_samples: int,
    ) -> None:
        self.segment = self.consolidated = 0
        self.shifts: list[int] = []
        self.consolidations: list[int] = []
        self.pending_losses: list[float] = []
        self._detector, self._learner, self._log, self._progress = detector, learner, log, progress
        self._thumbnails, self._relapse_tester = thumbnails, relapse_tester
        self._min_samples = min_samples

    def after_batch(self, record: BatchRecord) -> None:
        """Show the detector the batch's features and labels, and its losses once there are enough of them."""
        if record.loss is None or not math.isfinite(record.loss):
            return
        if record.result.features is not None and isinstance(self._detector, FeatureShiftDetector):
            self._detector.look(record.result.features)
        if isinstance(self._detector, LabelShiftDetector):
            self._detector.look_at_labels(learned_labels(record))
        self.pending_losses += record.result.losses
        if len(self.pending_losses) >= self._min_samples:
            loss, self.pending_losses = fmean(self.pending_losses), []
            self._update_detector(loss, record)

    def after_erasure(self) -> None:
        """Have the detector drop everything that was derived from features and labels of samples."""
        if isinstance(self._detector, FeatureShiftDetector):
            self._detector.drop_features()
        if isinstance(self._detector, LabelShiftDetector):
            self._detector.drop_labels()

    def end_stream(self) -> bool:
        """Let the learner do what it does at the end of a stream, and test erasures.

        Return whether the learner has changed.
        """
        ends = self._learner.end_stream if isinstance(self._learner, EndOfStreamLearner) else None
        figures = {} if ends is None else ends(self._progress.offset)
        if figures:
            self._log.log("training", "the stream ended", **figures)
        self.retest()
        return bool(figures)

    def retest(self) -> None:
        """Test whether something erased has come back; if so, it is erased again before the next batch."""
        if self._relapse_tester is not None:
            for event in self._relapse_tester.retest(self._progress.offset):
                self._log.write_event(event.kind, event.figures)

    def _update_detector(self, loss: float, record: BatchRecord) -> None:
        offset = self._progress.offset
        self._detector.update(loss)
        if (reason := self._detector.shift) is not None:
            self.segment += 1
            self.shifts = [*self.shifts, offset][-MAX_OFFSETS_IN_STATE:]
            self._log.log("shift", reason, loss=loss)
            if self._thumbnails is not None:
                self._thumbnails.keep(offset, record.batch.samples, record.predictions)
            self.retest()
        if (reason := self._detector.plateau) is not None:
            if figures := self._learner.consolidate():
                self.consolidated += 1
                self.consolidations = [*self.consolidations, offset][-MAX_OFFSETS_IN_STATE:]
            self._log.log("consolidation" if figures else "plateau", reason, loss=loss, **figures)


def learned_labels(record: BatchRecord) -> list[str]:
    """Return the labels of the samples of a batch that were learned, in their order."""
    learned = frozenset(record.result.learned)
    samples = zip(record.batch.offsets, record.batch.samples, strict=True)
    return [sample.label for offset, sample in samples if offset in learned and sample.label is not None]
