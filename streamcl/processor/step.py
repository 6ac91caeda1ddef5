"""How a batch is learned where memory is short or numbers are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np

from streamcl.errors import NotFinite
from streamcl.events import Batch, Prediction, StepResult
from streamcl.processor.event_log import EventLog
from streamcl.processor.progress import Progress
from streamcl.protocols import Learner


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a batch, whether it was learned in one step or in several.

    lesson: of all its samples. labelled: how many have labels. not_finite: how many of those were not learned
    because losses or gradients of their step were not finite; the others not learned did not fit into memory.
    """

    lesson: StepResult
    labelled: int
    not_finite: int


class StepRunner:
    """Gives the learner its batches.

    max_skipped: batches in a row of which nothing was learned, because of numbers that were not finite,
        before NotFinite is raised.
    """

    def __init__(self, learner: Learner, progress: Progress, journal: EventLog, max_skipped: int) -> None:
        self._learner = learner
        self._progress = progress
        self._journal = journal
        self._max_skipped = max_skipped

    def run(self, batch: Batch) -> Outcome:
        """Let the learner have the batch, or its halves one after the other where memory is too short."""
        try:
            lesson = self._learner.learn(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        else:
            return _outcome(batch, lesson)
        if len(batch) <= 1:
            self._journal.log("skipped", "memory is too short for one sample; it was not learned")
            left_out = StepResult((Prediction(None, 0.0),) * len(batch), (), learned=())
            return Outcome(left_out, len(batch.labelled), not_finite=0)
        message = f"memory is too short for {len(batch)} samples; they are learned in halves"
        self._journal.log("split", message)
        first, second = batch.halves()
        return _joined(self.run(first), self.run(second))

    def mean_loss(self, outcome: Outcome) -> float | None:
        """The batch's mean loss where it may reach the detector; counts steps that were not finite."""
        lesson = outcome.lesson
        if outcome.not_finite:
            self._skip(outcome)
            if not lesson.learned:
                return None
        self._progress.skipped_in_a_row = 0
        return fmean(lesson.losses) if lesson.losses else None

    def _skip(self, outcome: Outcome) -> None:
        """Count a batch with a step that was not finite; in a row only those of which nothing was learned."""
        learned = len(outcome.lesson.learned)
        self._progress.skipped += 1
        self._journal.log(
            "skipped",
            f"losses or gradients were not finite; {learned} of {outcome.labelled} samples were learned, "
            f"{outcome.labelled - learned} were not",
        )
        if learned:
            return
        self._progress.skipped_in_a_row += 1
        count, committed = self._progress.skipped_in_a_row, self._progress.committed
        if count >= self._max_skipped:
            self._journal.log("rollback", f"{count} steps in a row were not finite", to=committed)
            raise NotFinite(
                f"{count} steps in a row were not finite, up to offset {self._progress.offset}",
                hint="lower the learning rate or set precision: 32-true; "
                f"the same command then goes on from offset {committed}",
            )


def _outcome(batch: Batch, lesson: StepResult) -> Outcome:
    """Of one step. Raises ValueError where the learner names samples that it cannot have learned."""
    labelled = batch.labelled_offsets
    if unknown := set(lesson.learned).difference(labelled):
        raise ValueError(
            f"the learner says that it learned {len(unknown)} offsets, {min(unknown)} the first of them, at "
            f"which the batch [{batch.offset}, {batch.end}) has no labelled sample"
        )
    return Outcome(lesson, len(labelled), not_finite=len(labelled) - len(lesson.learned))


def _joined(first: Outcome, second: Outcome) -> Outcome:
    """Of both halves of a batch. Losses and features are those of halves of which something was learned."""
    taught = [half.lesson for half in (first, second) if half.lesson.learned]
    features = [lesson.features for lesson in taught if lesson.features is not None]
    lesson = StepResult(
        first.lesson.predictions + second.lesson.predictions,
        tuple(loss for lesson in taught for loss in lesson.losses),
        first.lesson.learned + second.lesson.learned,
        np.concatenate(features) if features else None,
    )
    return Outcome(lesson, first.labelled + second.labelled, first.not_finite + second.not_finite)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's MemoryError, torch's OutOfMemoryError, or the RuntimeError of its allocator for the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
