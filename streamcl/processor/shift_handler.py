"""Where a stream shifts and settles, and what follows: thumbnails and tests of erasures, or consolidation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from streamcl.events import PredictionRecord, Sample, StepResult
from streamcl.processor.event_log import EventLog
from streamcl.processor.ports import Forgetting, ThumbnailStore
from streamcl.processor.progress import Progress
from streamcl.protocols import FeatureShiftDetector, Learner, ShiftDetector


class ShiftHandler:
    """Gives the detector its losses and acts on what it says.

    gather: samples whose mean loss the detector is given at least; fewer wait for those of the next batch.
    """

    def __init__(
        self,
        detector: ShiftDetector,
        learner: Learner,
        progress: Progress,
        journal: EventLog,
        *,
        gallery: ThumbnailStore | None,
        forgetter: Forgetting | None,
        gather: int,
    ) -> None:
        self._detector = detector
        self._learner = learner
        self._progress = progress
        self._journal = journal
        self._gallery = gallery
        self._forgetter = forgetter
        self._gather = gather

    def watch(
        self, samples: Sequence[Sample], predictions: Sequence[PredictionRecord], lesson: StepResult
    ) -> None:
        """Settle once there are losses of enough samples: a mean of few is mostly noise."""
        if lesson.features is not None and isinstance(self._detector, FeatureShiftDetector):
            self._detector.look(lesson.features)
        gathered = [*self._progress.pending_losses, *lesson.losses]
        enough = len(gathered) >= self._gather
        self._progress.pending_losses = [] if enough else gathered
        if enough:
            self._settle(samples, predictions, fmean(gathered))

    def erased(self) -> None:
        """Something was erased: the detector keeps nothing that was made of samples' features."""
        if isinstance(self._detector, FeatureShiftDetector):
            self._detector.drop_features()

    def retest(self) -> None:
        """Look whether something erased has come back; it is erased again before the next batch."""
        if self._forgetter is not None:
            for kind, figures in self._forgetter.retest(self._progress.offset):
                self._journal.write_event(kind, figures)

    def _settle(
        self, samples: Sequence[Sample], predictions: Sequence[PredictionRecord], loss: float
    ) -> None:
        """Give the detector its loss and act on what it says."""
        self._detector.update(loss)
        if (reason := self._detector.shift) is not None:
            self._progress.shift()
            self._journal.log("shift", reason, loss=loss)
            if self._gallery is not None:
                self._gallery.keep(self._progress.offset, samples, predictions)
            self.retest()
        if (reason := self._detector.plateau) is not None:
            if figures := self._learner.consolidate():
                self._progress.consolidate()
            self._journal.log("consolidation" if figures else "plateau", reason, loss=loss, **figures)
