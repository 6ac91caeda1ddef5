"""The part of predicting and learning that learners share: a batch prepared, a step whole or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.protocols import Rollback

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


def prepare_step(
    batch: Batch, logits: Tensor, known: ClassIndex, calibrated: Tensor | None = None
) -> PreparedStep:
    """Return the batch with its predictions and targets; change nothing.

    Args:
        batch: B samples, one or more.
        logits: [B, C], with the columns of `known`; their softmax gives the losses.
        known: the classes known before the batch.
        calibrated: [B, C], whose softmax gives the confidences; None: that of the logits.
    """
    made = predictions.to_predictions(logits if calibrated is None else calibrated, known.names)
    rows = labelled_rows(batch.samples)
    names = [str(batch.samples[row].label) for row in rows]
    index = ClassIndex([*known.names, *names])
    targets = index.columns(names, logits.device)
    losses = tuple(predictions.open_set_nll(logits[rows], targets).tolist()) if rows else ()
    return PreparedStep(batch, made, losses, rows, targets, index)


def labelled_rows(samples: Sequence[Sample]) -> list[int]:
    """Return the positions of the samples that have a label."""
    return [row for row, sample in enumerate(samples) if sample.label is not None]


class Transaction:
    """A block of statements that changes a learner whole or not at all.

    Where the block raises, or was refused, every savepoint is restored, the last one first. A refusal does
    not raise: it says that losses or gradients are not finite.

        with Transaction(head.savepoint()) as step:
            if not all_finite(features):
                step.refuse()
        learned = batch.labelled_offsets if step.accepted else ()
    """

    def __init__(self, *savepoints: Rollback) -> None:
        self._savepoints = list(savepoints)
        self.accepted = True

    def cover(self, savepoint: Rollback) -> None:
        """Restore this savepoint too."""
        self._savepoints.append(savepoint)

    def refuse(self) -> None:
        """Restore everything at the end of the block."""
        self.accepted = False

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.accepted or isinstance(error, Exception):
            for restore in reversed(self._savepoints):
                restore()


class LogitLearner(ABC):
    """A learner that predicts by the softmax of its logits; subclasses set `index`."""

    index: ClassIndex

    @abstractmethod
    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] of samples, one or more, whose softmax is the classes' probabilities."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the logits."""
        return self.index.names

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """Return one prediction for each sample; change nothing that decides the future."""
        return predictions.to_predictions(self.logits(samples), self.classes) if samples else ()

    def consolidate(self) -> Mapping[str, Any]:
        """Do nothing: a plateau of the stream changes no weights. Subclasses may act."""
        return {}
