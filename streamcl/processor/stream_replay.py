"""Learns a part of a stream again from a checkpoint's state, without logs, metrics and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamcl.events import Batch
from streamcl.processor.event_log import EventLog, Progress
from streamcl.processor.observers import NonFiniteGuard
from streamcl.processor.shift_handler import ShiftHandler
from streamcl.processor.step import StepRunner, predictions_of
from streamcl.protocols import BatchRecord, Learner, ShiftDetector, Sink, Source


class Replay:
    """Learns batches as the loop does: steps, the detector, consolidation at plateaus.

    The learner, the detector and the counters of segments come to the state that a run has which learned the
    same batches; nothing else is touched.

    Args:
        learner: the run's own; it is changed.
        detector: another one, of the run's kind.
        state: of the run's checkpoint (see `StreamProcessor.state_dict`).
        sink: takes what is logged again, and keeps none of it.
        min_samples, max_skipped: the run's (see `LoopPolicy`).
    """

    def __init__(
        self,
        learner: Learner,
        detector: ShiftDetector,
        state: Mapping[str, Any],
        sink: Sink,
        *,
        min_samples: int,
        max_skipped: int,
    ) -> None:
        self.detector, self.progress = detector, Progress()
        log = EventLog(sink, self.progress)
        self.shift_handler = ShiftHandler(
            detector,
            learner,
            log,
            self.progress,
            thumbnails=None,
            relapse_tester=None,
            min_samples=min_samples,
        )
        self._step = StepRunner(learner, log, learner.predict)
        self._guard = NonFiniteGuard(log, self.progress, max_skipped)
        parts = {"learner": learner, "detector": detector, "progress": self.progress}
        for name, part in {**parts, "shifts": self.shift_handler, "guard": self._guard}.items():
            part.load_state_dict(state[name])

    def learn(self, source: Source, end: int, filter_batch: Callable[[Batch], Batch]) -> None:
        """Learn the batches of a source that begin before offset `end`; requests to forget are passed over.

        Args:
            source: positioned at the checkpoint.
            end: offset at which the run stands.
            filter_batch: removes records that are not to be learned; their places stay.
        """
        for event in source:
            if self.progress.offset >= end:
                return
            if isinstance(event, Batch):
                self._learn(filter_batch(event))

    def _learn(self, batch: Batch) -> None:
        outcome = self._step.run(batch)
        record = BatchRecord(
            batch,
            predictions_of(batch, outcome.result, {}),
            outcome.result,
            outcome.loss,
            outcome.not_finite,
            self.shift_handler.segment,
        )
        self.progress.advance(batch)
        self._guard.after_batch(record)
        self.shift_handler.after_batch(record)
