"""The closed-form part of a learner: its heads, the features that each sums, and how they came about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.data import Floats, Sums
from streamcl.audit.scope import placed
from streamcl.config.options.run import RunConfig
from streamcl.events import Batch, Sample
from streamcl.factory.learner import build_learner
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics
from streamcl.learners.hybrid import RidgeLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.protocols import Learner


class ClosedForms:
    """The ridge heads whose scores a learner joins, with their features side by side.

    moved_until: the stream offset up to which an adapted head's features still moved; its share of what came
    before cannot be derived from samples one by one, only by learning the beginning again.
    """

    def __init__(self, exact: RidgeLearner, hybrid: RidgeLoRALearner | None = None) -> None:
        self.exact = exact
        self.hybrid = hybrid if hybrid is not None and hybrid.adapted is not None else None

    @property
    def heads(self) -> tuple[RidgeHead, ...]:
        """The exact one first."""
        adapted = None if self.hybrid is None else self.hybrid.adapted
        return (self.exact.head,) if adapted is None else (self.exact.head, adapted.head)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the features of each head."""
        return tuple(head.statistics.gram.width for head in self.heads)

    @property
    def moved_until(self) -> int:
        """0 where all features were always the same."""
        return 0 if self.hybrid is None else self.hybrid.adapted_until

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """phi as the heads sum it, float32 [N, sum of widths] on the CPU; float32 loses nothing."""
        if self.hybrid is None:
            return self.exact.head.features(self.exact.features(samples)).float().cpu()
        reading = self.hybrid.read(samples)
        assert reading.adapted is not None
        both = zip(self.heads, (reading.features, reading.adapted), strict=True)
        return torch.cat([head.features(features).float() for head, features in both], dim=1).cpu()

    def sums(self, columns: Mapping[str, int]) -> Sums:
        """What the heads know, as copies on the CPU with the columns that are asked for."""
        return _of_one(tuple(_aligned(head.statistics, self.exact.classes, columns) for head in self.heads))


class Beginning:
    """Learns the beginning of a stream again, up to where a hybrid's adapters held still.

    The adapted head's sums of that time belong to features that moved from batch to batch. A run is bit-equal
    to its repetition (on a CPU, with the same threads), so the repetition has those sums, of these samples
    and no others: they are what a model that never saw the forgotten ones has.
    """

    def __init__(self, hybrid: RidgeLoRALearner, config: RunConfig) -> None:
        again = build_learner(config, hybrid.backbone, hybrid.exact.compute)
        assert isinstance(again, RidgeLoRALearner)
        self._run, self._again = hybrid, again

    def learn(self, batch: Batch, kept: Mapping[int, str]) -> None:
        """A batch of the beginning: what was learned of it and not forgotten, and what has no label."""
        samples = [
            replace(sample, label=kept.get(offset))
            for offset, sample in placed(batch)
            if offset in kept or sample.label is None
        ]
        self._again.learn(Batch(batch.offset, tuple(samples)))

    def sums(self, columns: Mapping[str, int]) -> Sums:
        """Of both heads, once everything up to where the adapters held still was learned."""
        self._again.consolidate()
        return ClosedForms(self._again.exact, self._again).sums(columns)

    def difference(self) -> float:
        """How far the adapters learned again are from the run's own, relatively; 0 is bit-equal."""
        one, two = self._run.adapted, self._again.adapted
        assert one is not None
        assert two is not None
        pairs = zip(_arrays(one.adapters.export_state()), _arrays(two.adapters.export_state()), strict=True)
        return max(_apart(old, new) for old, new in pairs)


def closed_forms(learner: Learner) -> ClosedForms | None:
    """The learner's; None where not all that it knows is in sums."""
    if isinstance(learner, RidgeLoRALearner) and _is_ridge(learner.exact):
        return ClosedForms(learner.exact, learner)
    if isinstance(learner, RidgeLearner) and _is_ridge(learner):
        return ClosedForms(learner)
    return None


def _is_ridge(learner: RidgeLearner) -> bool:
    return type(learner.head) is RidgeHead


def _of_one(sums: tuple[Statistics, ...]) -> Sums:
    return sums[0] if len(sums) == 1 else sums


def _aligned(statistics: Statistics, names: Sequence[str], columns: Mapping[str, int]) -> Statistics:
    """A copy on the CPU, its columns where they are asked for; nothing is known of the others."""
    copy = Statistics.from_state(statistics.state_dict(), statistics.gram.width, "cpu")
    own = {columns[name]: column for column, name in enumerate(names)}
    return copy.select([own.get(place, -1) for place in range(len(columns))])


def _arrays(state: Mapping[str, Any]) -> Iterator[Floats]:
    for _, value in sorted(state.items()):
        if isinstance(value, Mapping):
            yield from _arrays(value)
        else:
            yield np.asarray(value, dtype=float)


def _apart(one: Floats, other: Floats) -> float:
    size = float(np.abs(one).max(initial=0.0))
    return float(np.abs(one - other).max(initial=0.0)) / (size or 1.0)
