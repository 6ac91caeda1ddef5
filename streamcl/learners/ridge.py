"""A closed-form head on a frozen backbone: no gradients, no order, exact forgetting by subtraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamcl.backbone import Backbone
from streamcl.compute import Compute
from streamcl.events import Batch, Guess, Lesson, Sample
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.classes import ClassIndex
from streamcl.learners.fused import fuse
from streamcl.learners.guesses import finite, guesses, surprise
from streamcl.protocols import State


class RidgeLearner:
    """Ridge regression to one-hot targets on tokens of several frozen blocks (RanPAC, arXiv 2307.02251).

    Each block gives its class token and its mean patch token, layer-normalised; all of them side by side
    are the features. `sharpness` multiplies the regression scores before the softmax that makes
    confidences of them.
    """

    def __init__(
        self,
        backbone: Backbone,
        compute: Compute,
        head: RidgeHead,
        *,
        blocks: Sequence[int],
        sharpness: float = 10.0,
    ) -> None:
        self.backbone = backbone
        self.compute = compute
        self.head = head
        self._blocks = tuple(sorted(blocks))
        self._sharpness = sharpness
        self._index = ClassIndex()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""
        return self._index.names

    def predict(self, samples: Sequence[Sample]) -> tuple[Guess, ...]:
        """One guess per sample; changes nothing that decides the future."""
        if not samples:
            return ()
        return guesses(self._logits(self.features(samples)), self.classes)

    def learn(self, batch: Batch) -> Lesson:
        """Predict the batch, then add its labelled samples to the statistics."""
        if not batch.samples:
            return Lesson((), ())
        features = self.features(batch.samples)  # [B, D]
        logits = self._logits(features)  # [B, C]
        predicted = guesses(logits, self.classes)
        learnable = batch.labelled
        if not learnable:
            return Lesson(predicted, ())
        rows = [i for i, sample in enumerate(batch.samples) if sample.label is not None]
        index = ClassIndex([*self.classes, *(str(sample.label) for sample in learnable)])
        targets = index.columns([sample.label for sample in learnable], features.device)
        shown = tuple(surprise(logits[rows], targets).tolist())
        if not finite(features):
            return Lesson(predicted, shown, learned=False)
        self._index = index
        self.head.grow(len(index))
        self.head.update(features[rows], targets)
        return Lesson(predicted, shown)

    def consolidate(self) -> Mapping[str, Any]:
        """Nothing: sums have no adapters to settle."""
        return {}

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """float32 [B, D]: fixed for ever, whatever is learned."""
        with torch.no_grad(), self.compute.autocast():
            tokens = self.backbone.stem(self.backbone.prepare([sample.image for sample in samples]))
            outputs = self.backbone.run(tokens, 0, self._blocks[-1] + 1)
            return fuse(self.backbone, outputs, self._blocks)

    def state_dict(self) -> State:
        """The head's statistics and the names of its columns."""
        return {"head": self.head.state_dict(), "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self._index = ClassIndex(state["classes"])
        self.head.load_state_dict(state["head"])

    def _logits(self, features: Tensor) -> Tensor:
        return self._sharpness * self.head.scores(features)
