"""Learners that rehearse stored images: ER (arXiv 1902.10486) and DER++ (arXiv 2004.07211)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.config.options.base import Warn
from streamcl.events import Sample
from streamcl.learners.baselines.finetune import AdaptedBaselineOptions, build_model
from streamcl.learners.factory import LearnerFactory
from streamcl.learners.gradient_learner import GradientLearner
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.protocols import Rollback, State

with lazy_imports():
    import torch
    from torch.nn import functional as F

    from streamcl.memory import reservoir

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.adapter_model import AdapterModel, ForwardPass
    from streamcl.memory.reservoir import ReservoirItem


class ReplayOptions(AdaptedBaselineOptions):
    """Experience replay from a reservoir of raw images (arXiv 1902.10486)."""

    name: Literal["er"] = Field("er", description="LoRA with experience replay.")
    replay_size: int = Field(500, ge=1, le=10**6, description="Images in the reservoir.")


class DarkReplayOptions(AdaptedBaselineOptions):
    """DER++: replay of images and of the logits predicted when they were stored (arXiv 2004.07211)."""

    name: Literal["der_pp"] = Field("der_pp", description="LoRA with replay of images and logits.")
    replay_size: int = Field(500, ge=1, le=10**6, description="Images in the reservoir.")
    alpha: Warn[float] = Field(0.1, ge=0, le=1e6, description="Weight of old logits.")
    beta: Warn[float] = Field(0.5, ge=0, le=1e6, description="Weight of old labels.")


class ExperienceReplay(GradientLearner):
    """ER with a reservoir: the mean cross-entropy over the batch and as many images drawn from the reservoir.

    replay_size: raw images held. Which images are in it is part of the state, and they can be purged; what
    rehearsing them has taught the weights cannot.
    """

    def __init__(self, model: AdapterModel, *, replay_size: int = 500) -> None:
        super().__init__(model)
        self.buffer = reservoir.Reservoir(replay_size, model.generator)

    @property
    def capabilities(self) -> Capabilities:
        """Those of every gradient learner, and the reservoir."""
        return replace(super().capabilities, replay_buffer=self.buffer, prediction_state=_without_samples)

    def state_dict(self) -> State:
        """The model's, and the buffer."""
        return {**super().state_dict(), "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        super().load_state_dict(state)
        self.buffer.load_state_dict(state["buffer"])

    def _savepoints(self) -> Sequence[Rollback]:
        return (*super()._savepoints(), self.buffer.savepoint())

    def _replay_samples(self, count: int) -> Sequence[Sample]:
        return [kept.sample for kept in self.buffer.draw(count)]

    def _update_buffer(self, seen: ForwardPass) -> None:
        self._offer(seen, None)

    def _offer(self, seen: ForwardPass, logits: Tensor | None) -> None:
        self.buffer.offer(seen.learnable, logits)
        self.buffer.complete(lambda kept: self.model.group.fetch_pixels(kept, seen.learnable))


class DERPlusPlus(ExperienceReplay):
    """DER++ (eq. 6): CE(batch) + alpha MSE(logits now, logits then) + beta CE, on two draws from a reservoir.

    The logits kept are those of the moment at which an image was offered; columns that have been added since
    are left out of the squared error. Each draw has half the size of the batch, so that a step costs what
    one of ER's does. alpha, beta: as for the paper's class-incremental Tiny ImageNet.
    """

    def __init__(
        self, model: AdapterModel, *, replay_size: int = 500, alpha: float = 0.1, beta: float = 0.5
    ) -> None:
        super().__init__(model, replay_size=replay_size)
        self._alpha = alpha
        self._beta = beta
        self._matched: list[ReservoirItem] = []  # the first draw of the step in hand

    def _replay_samples(self, count: int) -> Sequence[Sample]:
        share = (count + 1) // 2
        self._matched, named = self.buffer.draw(share), self.buffer.draw(share)
        return [kept.sample for kept in (*self._matched, *named)]

    def _loss(self, seen: ForwardPass) -> Tensor:
        fresh, matched = len(seen.learnable), len(self._matched)
        losses = F.cross_entropy(seen.logits, seen.targets, reduction="none")
        loss = losses[:fresh].mean()
        if matched:
            loss = loss + self._beta * losses[fresh + matched :].mean()
            now = seen.logits[fresh : fresh + matched]
            loss = loss + self._alpha * logit_mse(now, [kept.logits for kept in self._matched])
        return loss

    def _update_buffer(self, seen: ForwardPass) -> None:
        self._offer(seen, seen.logits[: len(seen.learnable)])


def _without_samples(state: State) -> State:
    return {**state, "buffer": reservoir.Reservoir.without_samples(state["buffer"])}


def logit_mse(now: Tensor, then: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of logits and stored ones, a scalar, over the columns of the stored.

    Args:
        now: float [N, C].
        then: float [c] for each of the N, with c at most C.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(then), batch_first=True, padding_value=torch.nan)
    padded = padded.to(now)
    difference = now[:, : padded.shape[1]] - padded.nan_to_num()
    known = ~padded.isnan()
    return difference.square().mul(known).sum() / known.sum().clamp(min=1)


ER = LearnerFactory(
    ReplayOptions,
    lambda options, context: ExperienceReplay(build_model(options, context), replay_size=options.replay_size),
    distributed=True,
)
DER_PP = LearnerFactory(
    DarkReplayOptions,
    lambda options, context: DERPlusPlus(
        build_model(options, context),
        replay_size=options.replay_size,
        alpha=options.alpha,
        beta=options.beta,
    ),
    distributed=True,
)
