"""Interfaces of learners that know more of a prediction than its class, or predict with less work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from streamcl.events import Sample

if TYPE_CHECKING:  # a learner without torch declares its capabilities too
    import torch


class AssessedScores(NamedTuple):
    """The logits [N, C] of N samples, and what to expect of them.

    flips: [N], the probability that an equally good model, learned from other samples of the same stream,
    names another class. novelty: [N]; 1 as a new sample of the stream is on average. NaN where nothing is
    known.
    """

    logits: torch.Tensor
    flips: torch.Tensor
    novelty: torch.Tensor

    @property
    def unsupported(self) -> torch.Tensor:
        """Novelty for each unit of the best logit, [N]; infinite where that is not above zero.

        A class that was never learned has a novel image or a low score, another data set mostly the former.
        """
        if not self.logits.shape[1]:
            return self.novelty.new_full((len(self.novelty),), float("inf"))
        best = self.logits.amax(dim=1).to(self.novelty)
        return (self.novelty / best.clamp(min=0)).nan_to_num(nan=float("inf"))


class AssessesPredictions(Protocol):
    """A learner that knows how stable a prediction is, and how new its input."""

    def assess(self, samples: Sequence[Sample]) -> AssessedScores:
        """Return the logits of samples, one or more, as `predict` uses them, with their assessment."""

    def change_probabilities(self, reading: Any, erased: int) -> torch.Tensor:
        """Return the probability [N] that the erasure of samples drawn at random has changed each class.

        Args:
            reading: of N samples, as `cached_features` reads them.
            erased: the number of samples that are not in the statistics any more.
        """


class EarlyPredictions(NamedTuple):
    """Logits [N, C] of N samples, and the number [N] of the exit that gave each, from 0.

    margins: [N, K], of the two best scores at each of K exits; NaN at those that a sample did not come to.
    """

    logits: torch.Tensor
    exits: torch.Tensor
    margins: torch.Tensor


class PartialPredictions(Protocol):
    """N samples on their way through the backbone, each as far as it was advanced."""

    @property
    def exits(self) -> torch.Tensor:
        """The number [N] of the last exit that each sample came to; -1 before the first."""

    @property
    def margins(self) -> torch.Tensor:
        """Of the two best scores there, float64 [N]; NaN before the first."""

    @property
    def logits(self) -> torch.Tensor:
        """The logits [N, C] from there; empty before the first."""

    def advance(self, places: torch.Tensor) -> None:
        """Take samples at the same exit, int64 [n], one or more, to the next one."""


class ExitsEarly(Protocol):
    """A learner that can predict at intermediate blocks."""

    @property
    def costs(self) -> tuple[float, ...]:
        """Of each exit the share of the work of all blocks that lies between it and the one before."""

    def predict(self, samples: Sequence[Sample], thresholds: Sequence[float]) -> EarlyPredictions:
        """Return the logits of samples, each from the first exit at which its margin reaches the threshold.

        Args:
            samples: one or more.
            thresholds: of each exit but the last.
        """

    def begin(self, samples: Sequence[Sample]) -> PartialPredictions:
        """Return samples, one or more, before the first block."""

    def rows_computed(self, count: int) -> int:
        """Return how many rows are computed where `count` samples are advanced together."""
