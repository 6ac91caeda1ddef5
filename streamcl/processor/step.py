"""One learning step, made in halves where memory is too short for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from streamcl.events import Batch, Prediction, PredictionRecord, Sample, StepResult
from streamcl.processor.event_log import EventLog
from streamcl.protocols import Learner


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The outcome of one batch, whether it was learned in one step or in several.

    result: of all its samples. not_finite: labelled samples that were not learned because losses or
    gradients of their step were not finite; the others that were not learned did not fit into memory.
    """

    result: StepResult
    not_finite: int

    @property
    def loss(self) -> float | None:
        """Mean loss in nats; None without losses, and where no step was finite and nothing was learned."""
        useless = self.not_finite and not self.result.learned
        return fmean(self.result.losses) if self.result.losses and not useless else None


class StepRunner:
    """Has the learner learn a batch, in halves where memory is short.

    Args:
        learner: learns.
        log: of the run.
        predict_only: predicts the samples of a batch that is not to be learned.
    """

    def __init__(
        self,
        learner: Learner,
        log: EventLog,
        predict_only: Callable[[Sequence[Sample]], Sequence[Prediction]],
    ) -> None:
        self._learner, self._log, self._predict_only = learner, log, predict_only

    def run(self, batch: Batch) -> StepOutcome:
        """Learn the batch, or only predict it; where memory is short, learn its halves one after the other.

        A single sample that does not fit is left out. The learner must be as before when it runs out of
        memory. Raise ValueError where it names samples that it cannot have learned.
        """
        if batch.predict_only:
            made = tuple(self._predict_only(batch.samples))
            return StepOutcome(StepResult(made, (), learned=()), not_finite=0)
        try:
            result = self._learner.learn(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        else:
            return _outcome(batch, result)
        if len(batch) <= 1:
            self._log.log("skipped", "memory is too short for one sample; it was not learned")
            left_out = StepResult((Prediction(None, 0.0),) * len(batch), (), learned=())
            return StepOutcome(left_out, not_finite=0)
        message = f"memory is too short for {len(batch)} samples; they are learned in halves"
        self._log.log("split", message)
        first, second = batch.halves()
        return _joined(self.run(first), self.run(second))


def _outcome(batch: Batch, result: StepResult) -> StepOutcome:
    """Return the outcome of one step."""
    labelled = batch.labelled_offsets
    if unknown := set(result.learned).difference(labelled):
        raise ValueError(
            f"the learner says that it learned {len(unknown)} offsets, {min(unknown)} the first of them, at "
            f"which the batch [{batch.offset}, {batch.end}) has no labelled sample"
        )
    return StepOutcome(result, not_finite=len(labelled) - len(result.learned))


def _joined(first: StepOutcome, second: StepOutcome) -> StepOutcome:
    """Join the halves of a batch. Losses and features are those of halves of which something was learned."""
    learned = [half.result for half in (first, second) if half.result.learned]
    features = [result.features for result in learned if result.features is not None]
    result = StepResult(
        first.result.predictions + second.result.predictions,
        tuple(loss for result in learned for loss in result.losses),
        first.result.learned + second.result.learned,
        np.concatenate(features) if features else None,
    )
    return StepOutcome(result, first.not_finite + second.not_finite)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether it is Python's MemoryError, torch's, or the RuntimeError of its CPU allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def predictions_of(
    batch: Batch, result: StepResult, earlier: Mapping[int, Prediction]
) -> tuple[PredictionRecord, ...]:
    """Return the predictions of a batch; those that were made earlier, at arrival, count instead."""
    made = (earlier.get(offset, each) for offset, each in zip(batch.offsets, result.predictions, strict=True))
    return tuple(
        record_of(sample, offset, each)
        for offset, sample, each in zip(batch.offsets, batch.samples, made, strict=True)
    )


def record_of(sample: Sample, offset: int, made: Prediction) -> PredictionRecord:
    """Return the record of a prediction of the sample at an offset."""
    facts = made.stability, made.novelty, made.work
    return PredictionRecord(sample.id, offset, sample.label, made.label, made.confidence, *facts)
