"""EWC++ (arXiv 1801.10112, section 4.1): important weights are drawn back to their last consolidation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from streamcl.config.options.base import Warn
from streamcl.learners.baselines.finetune import AdaptedBaselineOptions, build_model
from streamcl.learners.factory import LearnerFactory
from streamcl.learners.gradient_learner import GradientLearner
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.protocols import Rollback, State, savepoint_of

with lazy_imports():
    import torch
    from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.adapter_model import AdapterModel, Gradients


class EWCOptions(AdaptedBaselineOptions):
    """EWC++ on adapters and head (arXiv 1801.10112)."""

    name: Literal["ewc_pp"] = Field("ewc_pp", description="LoRA with EWC++.")
    strength: Warn[float] = Field(100.0, ge=0, le=1e12, description="Lambda: weight of the penalty.")
    decay: Warn[float] = Field(0.9, ge=0, lt=1, description="Decay of the running importance at each step.")


class EWCPlusPlus(GradientLearner):
    """Loss + strength / 2 sum F (theta - anchor)^2 over adapters and head.

    F is a running mean of squared gradients of the batch's data loss, F <- decay F + (1 - decay) g^2; at a
    consolidation it becomes the importance that counts from there on, and the weights of that moment the
    anchor (the paper does so at the end of a task; here the stream's plateaus say when). As in the authors'
    code g is the gradient of the mean over the batch. Rows of classes that come later are free.
    """

    def __init__(self, model: AdapterModel, *, strength: float = 100.0, decay: float = 0.9) -> None:
        super().__init__(model)
        self._strength = strength
        self._decay = decay
        self._running: Gradients = {}
        self._importance: Gradients = {}
        self._anchor: Gradients = {}

    def consolidate(self) -> Mapping[str, Any]:
        """Take the running importance and the present weights as importance and anchor."""
        self._importance = {name: value.clone() for name, value in self._running.items()}
        self._anchor = {name: p.detach().clone() for name, p in self.model.parameters().items()}
        return {"importance": sum(float(value.sum()) for value in self._importance.values())}

    def state_dict(self) -> State:
        """Return the model's state, with both importances and the anchor."""
        kept = {"running": self._running, "importance": self._importance, "anchor": self._anchor}
        return {
            **super().state_dict(),
            **{name: {key: v.cpu().numpy().copy() for key, v in part.items()} for name, part in kept.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        super().load_state_dict(state)
        device = self.model.backbone.device
        self._running, self._importance, self._anchor = (
            {key: torch.tensor(value, device=device) for key, value in state[name].items()}
            for name in ("running", "importance", "anchor")
        )

    def _savepoints(self) -> Sequence[Rollback]:
        return (*super()._savepoints(), savepoint_of(self, "_running"))

    def _regularise(self, gradients: Gradients) -> Gradients:
        self._running = self._running | {
            name: self._decay * _like(self._running.get(name), each) + (1 - self._decay) * each.square()
            for name, each in gradients.items()
        }
        return {name: gradient + self._pull(name, gradient) for name, gradient in gradients.items()}

    def _pull(self, name: str, like: Tensor) -> Tensor:
        """The gradient of the penalty on one parameter."""
        importance, anchor = _like(self._importance.get(name), like), _like(self._anchor.get(name), like)
        return self._strength * importance * (self.model.parameters()[name].detach() - anchor)


def _like(values: Tensor | None, like: Tensor) -> Tensor:
    """The values with zeros for the rows that have been added since."""
    if values is None:
        return torch.zeros_like(like)
    more = len(like) - len(values)
    return F.pad(values, (*[0, 0] * (values.ndim - 1), 0, more)) if more else values


EWC_PP = LearnerFactory(
    EWCOptions,
    lambda options, context: EWCPlusPlus(
        build_model(options, context), strength=options.strength, decay=options.decay
    ),
    distributed=True,
)
