"""The closed-form heads of a learner: their features, their statistics, and a replay of its warm-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.data import Floats, ModelStatistics
from streamcl.audit.stream_split import with_offsets
from streamcl.config.options.run import RunConfig
from streamcl.events import Batch, Sample
from streamcl.factory.learner import build_learner
from streamcl.heads.closed_form_head import ClosedFormHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.protocols import Learner


class ClosedFormHeads:
    """The ridge heads whose scores a learner blends, with their features side by side."""

    def __init__(self, exact: RidgeLearner[Statistics], ridge_lora: RidgeLoRALearner | None = None) -> None:
        self.exact = exact
        self.ridge_lora = ridge_lora if ridge_lora is not None and ridge_lora.adapted is not None else None

    @property
    def heads(self) -> tuple[ClosedFormHead[Statistics], ...]:
        """The exact head, then the adapted one where there is one."""
        return (self.exact if self.ridge_lora is None else self.ridge_lora).statistics.heads

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of features of each head."""
        return tuple(head.statistics.gram.width for head in self.heads)

    @property
    def warm_up_end(self) -> int:
        """Stream offset up to which the adapted head's features still moved; 0 where none ever did.

        Statistics from before it cannot be derived sample by sample, only by learning the warm-up again.
        """
        return 0 if self.ridge_lora is None else self.ridge_lora.adapted_until

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Return mapped features of N samples, float32 [N, sum of widths] on the CPU."""
        if self.ridge_lora is None:
            return self.exact.head.statistic_rows(self.exact.features(samples)).float().cpu()
        reading = self.ridge_lora.read(samples)
        assert reading.adapted is not None
        both = zip(self.heads, (reading.features, reading.adapted), strict=True)
        return torch.cat([head.statistic_rows(features).float() for head, features in both], dim=1).cpu()

    def statistics(self, columns: Mapping[str, int]) -> ModelStatistics:
        """Return copies of the heads' statistics on the CPU, with the column of each class in `columns`."""
        found = tuple(_aligned(head.statistics, self.exact.classes, columns) for head in self.heads)
        return found if len(found) > 1 else found[0]


class WarmUpReplay:
    """Learns the beginning of a stream again, up to the offset where the adapters of ridge_lora were frozen.

    The adapted head's statistics of that time belong to features that moved from batch to batch. A run is
    bit-equal to its repetition (on a CPU, with the same threads), so the repetition without the forgotten
    samples gives the statistics of a model that never saw them.
    """

    def __init__(self, ridge_lora: RidgeLoRALearner, config: RunConfig) -> None:
        again = build_learner(config, ridge_lora.backbone, ridge_lora.exact.compute)
        assert isinstance(again, RidgeLoRALearner)
        self._run, self._again = ridge_lora, again

    def learn(self, batch: Batch, kept: Mapping[int, str]) -> None:
        """Learn the retained and the unlabelled samples of one batch.

        Args:
            batch: of the warm-up.
            kept: labels of the retained samples by offset.
        """
        samples = [
            replace(sample, label=kept.get(offset))
            for offset, sample in with_offsets(batch)
            if offset in kept or sample.label is None
        ]
        self._again.learn(Batch(batch.offset, tuple(samples)))

    def statistics(self, columns: Mapping[str, int]) -> ModelStatistics:
        """Freeze the adapters; return both heads' statistics as `ClosedFormHeads.statistics` does."""
        self._again.consolidate()
        return ClosedFormHeads(self._again.exact, self._again).statistics(columns)

    def difference(self) -> float:
        """Return the relative difference between the replayed and the run's adapters; 0 is bit-equal."""
        one, two = self._run.adapted, self._again.adapted
        assert one is not None
        assert two is not None
        pairs = zip(_arrays(one.adapters.export_state()), _arrays(two.adapters.export_state()), strict=True)
        return max(_relative_difference(old, new) for old, new in pairs)


def closed_form_heads(learner: Learner) -> ClosedFormHeads | None:
    """Return the learner's heads; None where the learner holds more than their statistics."""
    if isinstance(learner, RidgeLoRALearner) and _is_ridge(learner.exact):
        return ClosedFormHeads(learner.exact, learner)
    if isinstance(learner, RidgeLearner) and _is_ridge(learner):
        return ClosedFormHeads(learner)
    return None


def _is_ridge(learner: RidgeLearner[Any]) -> bool:
    return type(learner.head) is RidgeHead


def _aligned(statistics: Statistics, names: Sequence[str], columns: Mapping[str, int]) -> Statistics:
    """A copy on the CPU with its columns in another order; columns of unknown classes are zero."""
    copy = Statistics.from_state(statistics.state_dict(), statistics.gram.width, "cpu")
    own = {columns[name]: column for column, name in enumerate(names)}
    return copy.select([own.get(place, -1) for place in range(len(columns))])


def _arrays(state: Mapping[str, Any]) -> Iterator[Floats]:
    for _, value in sorted(state.items()):
        if isinstance(value, Mapping):
            yield from _arrays(value)
        else:
            yield np.asarray(value, dtype=float)


def _relative_difference(one: Floats, other: Floats) -> float:
    size = float(np.abs(one).max(initial=0.0))
    return float(np.abs(one - other).max(initial=0.0)) / (size or 1.0)
