"""Makes the learners that others are compared with."""

from __future__ import annotations

import functools
from typing import TypeAlias

import torch

from streamcl.config.options.baselines import (
    AdaptedBaselineOptions,
    DarkReplayOptions,
    EWCOptions,
    FrozenLinearOptions,
    NaiveLoRAOptions,
    ReplayOptions,
)
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.learners.adapter_model import AdapterModel, OptimizerOf
from streamcl.learners.baselines.ewc import EWCPlusPlus
from streamcl.learners.baselines.finetune import FinetuneLearner
from streamcl.learners.baselines.replay import DERPlusPlus, ExperienceReplay
from streamcl.learners.gradient_learner import GradientLearner
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

Baseline: TypeAlias = FrozenLinearOptions | NaiveLoRAOptions | ReplayOptions | DarkReplayOptions | EWCOptions


def build_baseline(
    options: Baseline, backbone: Backbone, compute: Compute, seed: int, group: ProcessGroup = SINGLE_PROCESS
) -> GradientLearner:
    """The baseline that these options describe, knowing nothing yet; `ranks` learn each batch together."""
    model = trained_model(options, backbone, compute, seed, group)
    match options:
        case ReplayOptions():
            return ExperienceReplay(model, replay_size=options.replay_size)
        case DarkReplayOptions():
            return DERPlusPlus(model, replay_size=options.replay_size, alpha=options.alpha, beta=options.beta)
        case EWCOptions():
            return EWCPlusPlus(model, strength=options.strength, decay=options.decay)
        case _:
            return FinetuneLearner(model)


def trained_model(
    options: FrozenLinearOptions | AdaptedBaselineOptions,
    backbone: Backbone,
    compute: Compute,
    seed: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> AdapterModel:
    """Adapters and head under Adam; without adapters, the head under SGD."""
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(options, AdaptedBaselineOptions):
        optimizer: OptimizerOf = functools.partial(torch.optim.SGD, lr=options.learning_rate)
        return AdapterModel(backbone, compute, None, optimizer=optimizer, generator=generator, group=group)
    optimizer = functools.partial(torch.optim.Adam, lr=options.learning_rate, fused=True)
    adapters = Adapters(backbone, rank=options.rank, first_block=options.first_block, generator=generator)
    return AdapterModel(backbone, compute, adapters, optimizer=optimizer, generator=generator, group=group)
