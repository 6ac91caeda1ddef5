"""Parts of the loop for live sources: predictions at arrival, overload, the sign of life of a waiting run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamcl.events import Batch, Prediction, PredictionRecord, Sample
from streamcl.memory.waiting_samples import prediction_fields
from streamcl.processor.event_log import EventLog, Progress
from streamcl.processor.step import record_of
from streamcl.protocols import BatchRecord, State

logger = logging.getLogger(__name__)

HEARTBEAT = 60.0
"""Seconds between two lines of a run that waits: seldom enough for a log that is kept for months."""


class ArrivalPredictions:
    """Predicts records as they come, and keeps each prediction until its record is learned.

    The prediction that counts for accuracy is the one that was made, and logged, at arrival.

    Args:
        predict: returns one prediction for each sample.
        log: of the run.
    """

    def __init__(self, predict: Callable[[Sequence[Sample]], Sequence[Prediction]], log: EventLog) -> None:
        self._predict, self._log = predict, log
        self._waiting: dict[int, Prediction] = {}

    def predict(self, batch: Batch) -> tuple[PredictionRecord, ...]:
        """Predict and log records that wait for their batch, each once."""
        new = [
            (offset, sample)
            for offset, sample in zip(batch.offsets, batch.samples, strict=True)
            if offset not in self._waiting
        ]
        made = self._predict([sample for _, sample in new]) if new else ()
        records = []
        for (offset, sample), prediction in zip(new, made, strict=True):
            self._waiting[offset] = prediction
            record = record_of(sample, offset, prediction)
            self._log.write_prediction(record)
            records.append(record)
        return tuple(records)

    def of(self, batch: Batch) -> Mapping[int, Prediction]:
        """Return the predictions that were made at arrival of records of this batch, by offset."""
        return {offset: self._waiting[offset] for offset in batch.offsets if offset in self._waiting}

    def after_batch(self, record: BatchRecord) -> None:
        """Drop the predictions of records that are learned."""
        self._waiting = {at: made for at, made in self._waiting.items() if at >= record.batch.end}

    def keep_classes(self, classes: Collection[str]) -> None:
        """Name no class but these in any prediction: others were erased since it was made."""
        for at, made in self._waiting.items():
            if made.label is not None and made.label not in classes:
                self._waiting[at] = replace(made, label=None)

    def state_dict(self) -> State:
        """Return the predictions of records that wait."""
        return {str(at): prediction_fields(made) for at, made in self._waiting.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to the predictions that were waiting then."""
        self._waiting = {
            int(at): Prediction(label, float(sure), *assessed)
            for at, (label, sure, *assessed) in state.items()
        }


class OverloadLog:
    """Logs when batches begin to be predicted without being learned, and how many records that concerned.

    predicted_only: records in the whole run that were predicted and not learned since too many waited.
    """

    def __init__(self, log: EventLog) -> None:
        self.predicted_only = 0
        self._since = 0  # as many of them when the present overload began
        self._lasts = False
        self._log = log

    def after_batch(self, record: BatchRecord) -> None:
        """Count a batch; log the beginning and the end of an overload."""
        if record.batch.predict_only:
            self._begin()
            self.predicted_only += len(record.batch.samples)
        elif self._lasts:
            self._end()

    def state_dict(self) -> State:
        """Return the counts; nothing where there was no overload."""
        if not self.predicted_only:
            return {}
        return {"predicted_only": self.predicted_only, "since": self._since, "lasts": self._lasts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counts of another process."""
        self.predicted_only, self._since = state.get("predicted_only", 0), state.get("since", 0)
        self._lasts = state.get("lasts", False)

    def _begin(self) -> None:
        if not self._lasts:
            self._lasts, self._since = True, self.predicted_only
            self._log.log("overload", "more records wait than `overload.above`; batches are only predicted")
            logger.warning("more records come than can be learned; some are only predicted")

    def _end(self) -> None:
        count, self._lasts = self.predicted_only - self._since, False
        self._log.log("overload_end", "every batch is learned again", predicted_only=count)
        logger.info("the overload is over: %d records were predicted and not learned", count)


class Heartbeat:
    """Logs, while the source has nothing, that the run waits, how much it has learned, and since when.

    Args:
        progress: of the run.
        clock: returns the time in seconds.
        now: returns the time of day, for the line.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = lambda: time.strftime("%H:%M"),
    ) -> None:
        self._progress, self._clock, self._now = progress, clock, now
        self._last: str | None = None
        self._logged = clock()

    def after_batch(self, record: BatchRecord) -> None:  # noqa: ARG002 - only that it came
        """Remember when the last batch came."""
        self._last, self._logged = self._now(), self._clock()

    def idle(self) -> None:
        """Log a line where the last one was HEARTBEAT seconds ago."""
        if self._clock() - self._logged < HEARTBEAT:
            return
        self._logged = self._clock()
        last = "nothing has come yet" if self._last is None else f"last at {self._last}"
        logger.info("waiting: %d records so far, %s", self._progress.offset, last)
