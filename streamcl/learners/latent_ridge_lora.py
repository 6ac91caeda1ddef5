"""ridge_lora with a store of latents: adapters are trained anew as the stream grows, or without a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from streamcl.capabilities.declaration import Capabilities
from streamcl.events import Batch, Sample, StepResult
from streamcl.learners import block_features, predictions
from streamcl.learners.assessment import BlendAssessment
from streamcl.learners.blended_learner import BlendedLearner
from streamcl.learners.retrained_branch import RetrainedBranch
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.learners.step import PreparedStep, Transaction
from streamcl.memory.latent_store import LatentStore
from streamcl.protocols import State

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import Statistics


@dataclass(frozen=True, slots=True, eq=False)
class LatentReading:
    """The features of B samples.

    Attributes:
        features: float32 [B, D], of the frozen blocks.
        tokens: [B, P N, d], of the branch's P views where it begins; None without a branch.
        adapted: float32 [B, E], for predictions; None before adapters were trained.
        to_teach: float32 [B, E], for the branch's head to learn; None with `adapted`.
        version: of the branch whose features these are.
    """

    features: Tensor
    tokens: Tensor | None = None
    adapted: Tensor | None = None
    to_teach: Tensor | None = None
    version: int = 0

    def __getitem__(self, rows: Sequence[int]) -> LatentReading:
        """Return those of some rows."""
        tokens, adapted, to_teach = (
            None if part is None else part[rows] for part in (self.tokens, self.adapted, self.to_teach)
        )
        return LatentReading(self.features[rows], tokens, adapted, to_teach, self.version)


class LatentRidgeLoRALearner(BlendedLearner[RetrainedBranch]):
    """A blended learner whose adapted branch knows the samples whose latents are stored."""

    def read(self, samples: Sequence[Sample]) -> LatentReading:
        """Return the features of samples, one or more, for `scores` and `learn_from`."""
        reader = self.exact.reader
        if self.adapted is None or not isinstance(reader, block_features.PrefixReader):
            return LatentReading(self.exact.features(samples))
        features, views = reader.read(samples, self.adapted.training.first_block)
        tokens = torch.cat(views[: self.adapted.predicted_views], dim=1)
        return self.refresh_features(LatentReading(features, tokens, version=-1))

    def refresh_features(self, reading: LatentReading) -> LatentReading:
        """Return a reading with the adapted features of the adapters as they are now."""
        if self.adapted is None or reading.tokens is None or reading.version == self.adapted.version:
            return reading
        to_teach, adapted = self.adapted.features(reading.tokens) if self.adapted.trained else (None, None)
        return replace(reading, adapted=adapted, to_teach=to_teach, version=self.adapted.version)

    def read_together(self, samples: Sequence[Sample]) -> LatentReading:
        """Read on all ranks, each its share of the samples; every rank gets all rows."""
        mine, group = self.read(self.exact.group.local_samples(samples)), self.exact.group
        tokens, adapted, to_teach = (
            None if part is None else group.all_gather_rows(part, samples)
            for part in (mine.tokens, mine.adapted, mine.to_teach)
        )
        features = group.all_gather_rows(mine.features, samples)
        return LatentReading(features, tokens, adapted, to_teach, mine.version)

    def learn_from(self, batch: Batch, reading: LatentReading) -> StepResult:
        """Learn the batch from features that were read of its samples."""
        scores = self.scores(reading)  # [B, C]
        step = self.exact.prepared(
            batch, scores, self.last_solve_scores(reading), self.uncertainty_in_use(reading)
        )
        features = reading.features
        to_learn = self.exact.to_learn(batch.samples, features) if step.rows else features
        read = (to_learn, reading.tokens, reading.adapted, reading.to_teach)
        seen = [part for part in read if part is not None]
        if not step.rows or not predictions.all_finite(*seen):
            return step.refused()
        learned = step.learned(features)
        with Transaction(self.exact.savepoint()) as transaction:
            if self.adapted is not None:
                transaction.cover(self.adapted.savepoint())
            self.exact.add(to_learn[step.rows], step.targets, step.index)
            self.calibration.update(scores[step.rows], step.targets)
            self._store(step, reading)
            self.statistics.notify(batch.labelled, [to_learn[step.rows]])
        return learned

    def end_stream(self, offset: int) -> Mapping[str, Any]:
        """Train the adapters once more, where much has come since they were last trained."""
        return {} if self.adapted is None else self.adapted.end_stream(offset)

    @property
    def statistics(self) -> ClosedFormStatistics[Statistics]:
        """The removable statistics, of the frozen head; the adapted one holds what is stored."""
        heads, read = (self.exact.head,), self.exact.statistics.read
        return ClosedFormStatistics(heads, read, self.exact.index, self._listeners)

    @property
    def capabilities(self) -> Capabilities:
        """Statistics that samples are subtracted from, and adapters that are trained again without them."""
        return Capabilities(
            statistics=self.statistics,
            drop_class=self.drop_class,
            retrained=self.adapted,
            drop_adapted_branch=self.drop_adapted,
            cached_features=self,
            assessment=BlendAssessment(self),
            calibration=self.score_calibration,
            adapter_export=self.adapter_export,
            prediction_state=_without_tokens,
        )

    def _adapted_of(self, reading: LatentReading) -> Tensor | None:
        return self.refresh_features(reading).adapted

    def _store(self, step: PreparedStep, reading: LatentReading) -> None:
        """Store the labelled samples of a batch whose place it is."""
        if self.adapted is None or reading.tokens is None:
            return
        tokens, samples, offsets = reading.tokens, step.batch.labelled, step.batch.labelled_offsets
        self.adapted.grow(self.exact.index)
        self.adapted.advance(step.batch.offset)
        to_teach = self.refresh_features(reading).to_teach
        chosen = self.adapted.chosen([sample.id for sample in samples])
        rows = [step.rows[each] for each in chosen]
        self.adapted.add(
            tokens[rows],
            None if to_teach is None else to_teach[rows],
            [str(samples[each].label) for each in chosen],
            [offsets[each] for each in chosen],
            [samples[each].id for each in chosen],
        )


def _without_tokens(state: State) -> State:
    """Return a state whose store knows how many samples of each class it has, and none of their tokens."""
    if state["adapted"] is None:
        return state
    store = LatentStore.without_tokens(state["adapted"]["store"])
    return {**state, "adapted": {**state["adapted"], "store": store}}
