"""The default learner: a closed form remembers and forgets exactly, LoRA adds what frozen features lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from streamcl.events import Batch, Guess, Lesson, Sample
from streamcl.learners.adapted import AdaptedBranch
from streamcl.learners.calibration import Calibration
from streamcl.learners.classes import ClassIndex
from streamcl.learners.fused import FrozenReader
from streamcl.learners.guesses import finite, guesses, surprise
from streamcl.learners.ridge import ROWS, RidgeLearner
from streamcl.protocols import State


class HybridLearner:
    """The sum of two ridge heads' scores: on frozen features, and on features adapted early in the stream.

    exact: the frozen branch, a RidgeLearner of its own; order-free, and what is forgotten there is gone
        exactly. Nothing that LoRA does reaches it.
    adapted: shares the frozen prefix; None once it has been dropped, which leaves the exact branch alone.
    """

    def __init__(self, exact: RidgeLearner, adapted: AdaptedBranch | None) -> None:
        self.exact = exact
        self.adapted = adapted
        self._calibration = Calibration()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of both heads."""
        return self.exact.classes

    @property
    def backbone(self) -> Any:
        """The frozen backbone that both branches share."""
        return self.exact.backbone

    def predict(self, samples: Sequence[Sample]) -> tuple[Guess, ...]:
        """One guess per sample; changes nothing that decides the future."""
        if not samples:
            return ()
        features, views = self._read(samples)
        scores = self.exact.head.exact_scores(features)
        if self.adapted is not None:
            scores = scores + self.adapted.head.exact_scores(self.adapted.features(views[0]))
        return guesses(self._calibration.sharpness * scores, self.classes)

    def learn(self, batch: Batch) -> Lesson:
        """Predict the batch, adapt while that is still on, and add its labelled samples to both heads."""
        if not batch.samples:
            return Lesson((), ())
        features, views = self._read(batch.samples)  # [B, D]
        adapted = None if self.adapted is None else self.adapted.features(views[0])  # [B, E]
        scores = self._scores(features, adapted)  # [B, C]
        predicted = guesses(self._calibration.sharpness * scores, self.classes)
        learnable = batch.labelled
        if not learnable:
            return Lesson(predicted, ())
        rows = [i for i, sample in enumerate(batch.samples) if sample.label is not None]
        names = [sample.label for sample in learnable]
        index = ClassIndex([*self.classes, *(str(name) for name in names)])
        targets = index.columns(names, features.device)
        shown = tuple(surprise(self._calibration.sharpness * scores[rows], targets).tolist())
        if not finite(features) or (adapted is not None and not finite(adapted)):
            return Lesson(predicted, shown, learned=False)
        if not self._learn_adapted([view[rows] for view in views], adapted, rows, targets, len(index)):
            return Lesson(predicted, shown, learned=False)
        known = targets < scores.shape[1]
        self._calibration.update(scores[rows][known], targets[known])
        self.exact.add(features[rows], targets, index)
        return Lesson(predicted, shown)

    def consolidate(self) -> Mapping[str, Any]:
        """At the first plateau the adapted branch settles; later there is nothing to consolidate."""
        if self.adapted is None or self.adapted.settled:
            return {}
        self.adapted.settle()
        return {"settled": True}

    def drop_adapted(self) -> None:
        """Lose the adapted branch whole; what is left never saw a gradient."""
        self.adapted = None

    def state_dict(self) -> State:
        """Both branches and the calibration; the backbone's own weights are not in it."""
        return {
            "exact": self.exact.state_dict(),
            "adapted": None if self.adapted is None else self.adapted.state_dict(),
            "calibration": self._calibration.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.exact.load_state_dict(state["exact"])
        self._calibration.load_state_dict(state["calibration"])
        if state["adapted"] is None:
            self.adapted = None
        elif self.adapted is not None:
            self.adapted.load_state_dict(state["adapted"])

    def _read(self, samples: Sequence[Sample]) -> tuple[Tensor, list[Tensor]]:
        """Frozen features [B, D], and each view's tokens where the adapted branch begins, if there is one."""
        reader = self.exact.reader
        if self.adapted is None or not isinstance(reader, FrozenReader):
            return self.exact.features(samples), []
        padded = [*samples, *[samples[-1]] * (-len(samples) % ROWS)]  # as RidgeLearner.features does
        features, views = reader.read(padded, self.adapted.adapters.first_block)
        return features[: len(samples)], [tokens[: len(samples)] for tokens in views]

    def _scores(self, features: Tensor, adapted: Tensor | None) -> Tensor:
        scores = self.exact.head.scores(features)
        if self.adapted is None or adapted is None:
            return scores
        return scores + self.adapted.head.scores(adapted)

    def _learn_adapted(
        self, views: list[Tensor], features: Tensor | None, rows: list[int], targets: Tensor, classes: int
    ) -> bool:
        """Adapt, where that is still on, and add the features as they are then; False if not finite."""
        if self.adapted is None or features is None:
            return True
        features = features[rows]
        if not self.adapted.settled:
            if not self.adapted.adapt(views, targets, classes):
                return False
            features = self.adapted.features(views[0])
            if not finite(features):
                return False
        self.adapted.head.grow(classes)
        self.adapted.head.update(features, targets)
        return True
