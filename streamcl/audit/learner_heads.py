"""The closed-form heads of a learner: their features, their statistics, and a replay of its warm-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.data import ModelStatistics
from streamcl.audit.stream_split import SAMPLES_AT_ONCE, with_offsets
from streamcl.capabilities.declaration import capabilities_of
from streamcl.events import Batch, Sample
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics
from streamcl.learners.reconstruction import ReconstructionStatistics
from streamcl.learners.statistics import ClosedFormStatistics, PerHead
from streamcl.protocols import Learner


@dataclass(frozen=True, slots=True)
class _Position:
    """An offset of the stream, as a learned sample."""

    offset: int
    private: bool = False


class ClosedFormHeads:
    """The ridge heads whose scores a learner blends, with their features side by side."""

    def __init__(self, learner: Learner, known: ClosedFormStatistics[Statistics]) -> None:
        self.learner, self._known = learner, known
        of_ridge = [head for head in known.heads if isinstance(head, RidgeHead)]
        self.heads = [head for head in of_ridge if head.has_uncertainty]  # which no other rule has

    def in_warm_up(self, batch: Batch) -> bool:
        """Return whether samples at the batch's offset trained features of a head.

        Their statistics cannot be derived sample by sample, only by learning the warm-up again.
        """
        trained = capabilities_of(self.learner).shared_weights
        return trained is not None and bool(trained(iter([[_Position(batch.offset)]])))

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Return mapped features of N samples, float32 [N, D] of all heads on the CPU."""
        rows = np.concatenate(self._known.rows_of(samples), axis=1)
        return torch.from_numpy(rows).float()

    def statistics(self, columns: Mapping[str, int]) -> ModelStatistics:
        """Return copies of the heads' statistics on the CPU, with the column of each class in `columns`."""
        classes = self.learner.classes
        return PerHead(tuple(_aligned(head.statistics, classes, columns) for head in self.heads))


class WarmUpReplay:
    """Learns the beginning of a stream again, up to the offset where the features of all heads are fixed.

    Statistics of that time belong to features that moved from batch to batch. A run is bit-equal to its
    repetition (on a CPU, with the same threads), so the repetition without the forgotten samples gives the
    statistics of a model that never saw them.

    Args:
        heads: of the run's learner.
        learner: a new one of the same configuration.
    """

    def __init__(self, heads: ClosedFormHeads, learner: Learner) -> None:
        self._heads, self._learner = heads, learner
        self._last: Sequence[Sample] = ()

    def learn(self, batch: Batch, labels: Mapping[int, str]) -> None:
        """Learn the retained samples of one batch, by their labels in `kept`, and the unlabelled ones."""
        samples = [
            replace(sample, label=labels.get(offset))
            for offset, sample in with_offsets(batch)
            if offset in labels or sample.label is None
        ]
        self._learner.learn(Batch(batch.offset, tuple(samples)))
        self._last = samples[:SAMPLES_AT_ONCE] or self._last

    def finish(self) -> ClosedFormHeads:
        """Consolidate, which fixes the features, and return the heads of the learner."""
        self._learner.consolidate()
        found = closed_form_heads(self._learner)
        assert found is not None
        return found

    def difference(self) -> float:
        """Return how far features of the finished replay are from the run's, relatively; 0 is bit-equal."""
        if not self._last:
            return 0.0
        one, other = self._heads.features(self._last), self.finish().features(self._last)
        return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def closed_form_heads(learner: Learner) -> ClosedFormHeads | None:
    """Return the learner's heads: one ridge head, or a frozen one blended with that of an adapted branch.

    None where it predicts by anything else, as by weights trained on stored features.
    """
    able = capabilities_of(learner)
    known = able.statistics
    if isinstance(known, ReconstructionStatistics):
        known = known.head
    if not isinstance(known, ClosedFormStatistics) or able.retrained is not None:
        return None
    found, blended = ClosedFormHeads(learner, known), able.drop_adapted_branch is not None
    fit = len(found.heads) == len(known.heads) <= 1 + blended
    return found if fit else None


def _aligned(statistics: Statistics, names: Sequence[str], columns: Mapping[str, int]) -> Statistics:
    """A copy on the CPU with its columns in another order; columns of unknown classes are zero."""
    copy = Statistics.from_state(statistics.state_dict(), statistics.gram.width, "cpu")
    own = {columns[name]: column for column, name in enumerate(names)}
    return copy.select([own.get(place, -1) for place in range(len(columns))])
