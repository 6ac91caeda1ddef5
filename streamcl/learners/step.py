"""A batch before it is learned: predictions, labelled rows, their class columns and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.learners.class_index import ClassIndex
from streamcl.registry import lazy_imports

with lazy_imports():
    from streamcl.learners import block_features, predictions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PreparedStep:
    """A batch of B samples, L of them labelled, with what was predicted before learning.

    Attributes:
        predictions: one for each sample.
        losses: of the labelled samples, in nats.
        rows: the labelled samples' rows in the batch.
        targets: their columns in `index`, int64 [L].
        index: the classes known, and those that are new in the batch.
    """

    batch: Batch
    predictions: tuple[Prediction, ...]
    losses: tuple[float, ...]
    rows: list[int]
    targets: Tensor
    index: ClassIndex

    def refused(self) -> StepResult:
        """Return the result where nothing is learned."""
        return StepResult(self.predictions, self.losses, learned=())

    def learned(self, features: Tensor | None = None) -> StepResult:
        """Return the result where every labelled sample is learned.

        Args:
            features: [B, F], of which a shift detector is given some; None where they move.
        """
        shown = None if features is None else block_features.detector_features(features)
        return StepResult(self.predictions, self.losses, self.batch.labelled_offsets, shown)


def prepare_step(batch: Batch, logits: Tensor, known: ClassIndex) -> PreparedStep:
    """Return the batch with its predictions and targets; change nothing.

    Args:
        batch: B samples, one or more.
        logits: [B, C], with the columns of `known`; their softmax gives the confidence of a prediction.
        known: the classes known before the batch.
    """
    rows = labelled_rows(batch.samples)
    names = [str(batch.samples[row].label) for row in rows]
    index = ClassIndex([*known.names, *names])
    targets = index.columns(names, logits.device)
    losses = tuple(predictions.open_set_nll(logits[rows], targets).tolist()) if rows else ()
    return PreparedStep(batch, predictions.to_predictions(logits, known.names), losses, rows, targets, index)


def labelled_rows(samples: Sequence[Sample]) -> list[int]:
    """Return the positions of the samples that have a label."""
    return [row for row, sample in enumerate(samples) if sample.label is not None]
