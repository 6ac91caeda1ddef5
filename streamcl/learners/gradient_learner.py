"""The step that learners trained by gradient share: predict, then one optimizer step on the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamcl.capabilities.declaration import Capabilities
from streamcl.events import Batch, Sample, StepResult
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.step import LogitLearner, Transaction
from streamcl.protocols import Rollback, State

with lazy_imports():
    from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.adapter_model import AdapterModel, ForwardPass, Gradients


class GradientLearner(LogitLearner):
    """One step a batch on the data loss of its labelled samples and of stored ones.

    Subclasses say which samples are replayed, what the loss is, and how old weights are held in place.
    """

    def __init__(self, model: AdapterModel) -> None:
        self.model = model

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""
        return self.model.classes

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] of samples."""
        return self.model.logits(samples)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then take one step on its labelled samples and those replayed."""
        if not batch.labelled:
            return StepResult(self.model.predict_together(batch.samples), (), learned=())
        with Transaction(*self._savepoints()) as step:
            seen = self._forward(batch)
            gradients = self.model.gradients(self._loss(seen))
            if gradients is None:
                step.refuse()
            else:
                self.model.apply(self._regularise(gradients))
                self._update_buffer(seen)
        return StepResult(seen.predictions, seen.losses, batch.labelled_offsets if step.accepted else ())

    @property
    def capabilities(self) -> Capabilities:
        """A model that a repair trains further; a class cannot be dropped."""
        return Capabilities(
            shared_weights=self.weights_trained_on, gradient_model=self.model, features=self.model.features
        )

    def weights_trained_on(self, samples: Iterator[Sequence[object]]) -> tuple[str, ...]:
        """Return the weights that learned samples trained: every one that is trained at all."""
        kinds = ("adapters", "head") if self.model.adapters else ("head",)
        return kinds if any(len(each) for each in samples) else ()

    def state_dict(self) -> State:
        """Return all that decides the future, without the backbone's own weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.model.load_state_dict(state)

    def _savepoints(self) -> Sequence[Rollback]:
        """Return the savepoints of all that a step changes."""
        return (self.model.savepoint(),)

    def _forward(self, batch: Batch) -> ForwardPass:
        """Return the pass over a batch and what is learned with it again."""
        return self.model.forward(batch, self._replay_samples(len(batch.labelled)))

    def _replay_samples(self, count: int) -> Sequence[Sample]:  # noqa: ARG002 - learners with a buffer use it
        """Return stored samples to learn together with `count` fresh ones."""
        return ()

    def _loss(self, seen: ForwardPass) -> Tensor:
        """Return the scalar loss that the step minimises."""
        return F.cross_entropy(seen.logits, seen.targets)

    def _regularise(self, gradients: Gradients) -> Gradients:
        """Return the gradients, with those of a penalty on moving old weights."""
        return gradients

    def _update_buffer(self, seen: ForwardPass) -> None:
        """Store samples of a batch that was learned."""
