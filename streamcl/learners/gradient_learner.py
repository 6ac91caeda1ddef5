"""The step that learners trained by gradient share: predict, then one optimizer step on the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamcl.capabilities.declaration import Capabilities
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.learners.rollback import Rollback, Transaction
from streamcl.protocols import State

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.adapter_model import AdapterModel, ForwardPass, Gradients


class GradientLearner:
    """One step a batch on the data loss of its labelled samples and of stored ones.

    Subclasses say which samples are replayed, what the loss is, and how old weights are held in place.
    """

    def __init__(self, model: AdapterModel) -> None:
        self.model = model

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""
        return self.model.classes

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """One guess per sample; changes nothing."""
        return self.model.predict(samples)

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Scores [B, C] of samples, one or more, whose softmax is the classes' probabilities."""
        return self.model.logits(samples)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then take one step on its labelled samples and what is rehearsed."""
        if not batch.labelled:
            return StepResult(self.model.predict_together(batch.samples), (), learned=())
        with Transaction(*self._savepoints()) as step:
            seen = self.model.forward(batch, self._replay_samples(len(batch.labelled)))
            gradients = self.model.gradients(self._loss(seen))
            if gradients is None:
                step.refuse()
            else:
                self.model.apply(self._regularise(gradients))
                self._update_buffer(seen)
        return StepResult(seen.guesses, seen.losses, batch.labelled_offsets if step.accepted else ())

    def consolidate(self) -> Mapping[str, Any]:
        """Nothing: the weights go on as they are."""
        return {}

    @property
    def capabilities(self) -> Capabilities:
        """A model that a repair trains further; no means to drop a class."""
        return Capabilities(
            shared_weights=self.weights_trained_on, gradient_model=self.model, features=self.model.features
        )

    def weights_trained_on(self, samples: Iterator[Sequence[object]]) -> tuple[str, ...]:
        """Return the weights that learned samples trained: every one that is trained at all."""
        kinds = ("adapters", "head") if self.model.adapters else ("head",)
        return kinds if any(len(each) for each in samples) else ()

    def state_dict(self) -> State:
        """Everything that decides what comes next; the backbone's own weights are not in it."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.model.load_state_dict(state)

    def _savepoints(self) -> Sequence[Rollback]:
        """Return the savepoints of all that a step changes."""
        return (self.model.savepoint(),)

    def _replay_samples(self, count: int) -> Sequence[Sample]:  # noqa: ARG002 - learners with a buffer use it
        """Samples that ride along with `count` fresh ones."""
        return ()

    def _loss(self, seen: ForwardPass) -> Tensor:
        """Return the scalar loss that the step minimises."""
        from torch.nn import functional as F

        return F.cross_entropy(seen.logits, seen.targets)

    def _regularise(self, gradients: Gradients) -> Gradients:
        """The gradients with whatever holds old weights in place."""
        return gradients

    def _update_buffer(self, seen: ForwardPass) -> None:
        """Take what is to be kept of a batch that was learned."""
