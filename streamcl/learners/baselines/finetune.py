"""One gradient step a batch and nothing against forgetting: the floor of every comparison."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from streamcl.config.options.base import BlockIndex, Options, Warn
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.gradient_learner import GradientLearner
from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    import torch

    from streamcl.learners import adapter_model
    from streamcl.nn import adapted_blocks, optimizers

if TYPE_CHECKING:
    from streamcl.learners.adapter_model import AdapterModel, OptimizerOf


class BaselineOptions(Options):
    """Options that all baselines with gradient steps share."""

    learning_rate: Warn[float] = Field(5e-4, gt=0, le=10, description="Step size.")


class FrozenLinearOptions(BaselineOptions):
    """A frozen backbone and a linear head trained by SGD: the baseline without adapters."""

    name: Literal["frozen_linear"] = Field("frozen_linear", description="Frozen features, linear head, SGD.")
    learning_rate: Warn[float] = Field(1e-2, gt=0, le=10, description="SGD's step size.")


class AdaptedBaselineOptions(BaselineOptions):
    """Options that all baselines with LoRA adapters share; their optimizer is Adam."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    first_block: BlockIndex = Field(0, description="First block with adapters, from 0.")


class NaiveLoRAOptions(AdaptedBaselineOptions):
    """LoRA and a linear head, fine-tuned on the stream in its order: the baseline without any remedy."""

    name: Literal["naive_lora"] = Field("naive_lora", description="Sequential LoRA and nothing else.")


class FinetuneLearner(GradientLearner):
    """Cross-entropy over all known classes, one step a batch; no mask, no buffer, no consolidation.

    On a model with adapters it is naive sequential fine-tuning of LoRA; on one without, a frozen backbone
    with an online linear head.
    """


def build_model(options: BaselineOptions, context: LearnerContext) -> AdapterModel:
    """Return adapters and head under Adam; where the options have no adapters, the head under SGD."""
    generator = torch.Generator().manual_seed(context.seed)
    adapters, rate = None, options.learning_rate
    optimizer: OptimizerOf = functools.partial(optimizers.SGD, lr=rate)
    if isinstance(options, AdaptedBaselineOptions):
        optimizer = functools.partial(optimizers.Adam, lr=rate, fused=True)
        adapters = adapted_blocks.Adapters(
            context.backbone, rank=options.rank, first_block=options.first_block, generator=generator
        )
    return adapter_model.AdapterModel(
        context.backbone,
        context.compute,
        adapters,
        optimizer=optimizer,
        generator=generator,
        group=context.group,
    )


def build_finetune(options: BaselineOptions, context: LearnerContext) -> FinetuneLearner:
    """Return the learner without a remedy against forgetting."""
    return FinetuneLearner(build_model(options, context))


FROZEN_LINEAR = LearnerFactory(FrozenLinearOptions, build_finetune, distributed=True)
NAIVE_LORA = LearnerFactory(NaiveLoRAOptions, build_finetune, distributed=True)
