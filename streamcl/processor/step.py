"""How a batch is learned where memory is short or numbers are not finite."""

from __future__ import annotations

from statistics import fmean

from streamcl.errors import NotFinite
from streamcl.events import Batch, Prediction, StepResult
from streamcl.processor.event_log import EventLog
from streamcl.processor.progress import Progress
from streamcl.protocols import Learner


class StepRunner:
    """Gives the learner its batches. max_skipped: non-finite steps in a row before NotFinite is raised."""

    def __init__(self, learner: Learner, progress: Progress, journal: EventLog, max_skipped: int) -> None:
        self._learner = learner
        self._progress = progress
        self._journal = journal
        self._max_skipped = max_skipped

    def run(self, batch: Batch) -> StepResult:
        """Let the learner have the batch, or its halves one after the other where memory is too short."""
        try:
            return self._learner.learn(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        if len(batch) <= 1:
            self._journal.log("skipped", "memory is too short for one sample; it was not learned")
            return StepResult((Prediction(None, 0.0),) * len(batch), ())
        message = f"memory is too short for {len(batch)} samples; they are learned in halves"
        self._journal.log("split", message)
        half = len(batch) // 2
        first = self.run(Batch(batch.offset, batch.samples[:half]))
        second = self.run(Batch(batch.offset + half, batch.samples[half:]))
        losses, learned = first.losses + second.losses, first.learned and second.learned
        return StepResult(first.predictions + second.predictions, losses, learned)

    def mean_loss(self, lesson: StepResult) -> float | None:
        """The batch's mean loss where it may reach the detector; counts the steps that were not finite."""
        if not lesson.learned:
            self._skip()
            return None
        self._progress.skipped_in_a_row = 0
        return fmean(lesson.losses) if lesson.losses else None

    def _skip(self) -> None:
        self._progress.skipped += 1
        self._progress.skipped_in_a_row += 1
        self._journal.log("skipped", "losses or gradients were not finite; nothing was learned")
        count, committed = self._progress.skipped_in_a_row, self._progress.committed
        if count >= self._max_skipped:
            self._journal.log("rollback", f"{count} steps in a row were not finite", to=committed)
            raise NotFinite(
                f"{count} steps in a row were not finite, up to offset {self._progress.offset}",
                hint="lower the learning rate or set precision: 32-true; "
                f"the same command then goes on from offset {committed}",
            )


def _is_out_of_memory(error: Exception) -> bool:
    """Python's MemoryError, torch's OutOfMemoryError, or the RuntimeError of its allocator for the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
