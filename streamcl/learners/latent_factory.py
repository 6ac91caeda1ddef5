"""Makes ridge_lora with a store of latents of its options."""

from __future__ import annotations

import functools

import numpy as np
import torch

from streamcl.heads.ridge import RidgeHead
from streamcl.learners import block_features
from streamcl.learners.adapted_branch import ADAPTED_BLOCKS, LoRABranchOptions
from streamcl.learners.factory import LearnerContext
from streamcl.learners.latent_ridge_lora import LatentRidgeLoRALearner
from streamcl.learners.latent_training import LatentTraining
from streamcl.learners.retrained_branch import RetrainedBranch
from streamcl.learners.ridge import RidgeOptions, build_ridge
from streamcl.learners.ridge_lora_options import LatentOptions
from streamcl.memory.latent_store import LatentSchedule, LatentStore
from streamcl.memory.quantised_tokens import QuantisedTokens, TokenDtype


def build_latent_ridge_lora(
    ridge: RidgeOptions, lora: LoRABranchOptions, latents: LatentOptions, context: LearnerContext
) -> LatentRidgeLoRALearner:
    """Return the closed form with a branch beside it that is trained from stored latents."""
    branch = functools.partial(build_retrained_branch, ridge, lora, latents, context)
    return LatentRidgeLoRALearner(build_ridge(ridge, context), branch(), branch)


def build_retrained_branch(
    ridge: RidgeOptions, lora: LoRABranchOptions, latents: LatentOptions, context: LearnerContext
) -> RetrainedBranch:
    """Return a branch that knows nothing."""
    backbone = context.backbone
    first = backbone.depth // 3 if lora.first_block is None else lora.first_block
    blocks = [block for block in context.blocks(ridge.blocks) if block >= first][-ADAPTED_BLOCKS:]
    if not blocks:
        raise context.refuse("learner.lora.first_block", f"the ridge head reads no block at or after {first}")
    rows = latents.budget // _bytes_of_sample(context, first, latents.dtype)
    if not rows:
        raise context.refuse("learner.latents.budget", "not even one sample's tokens fit into it")
    training = LatentTraining(
        backbone=backbone,
        compute=context.compute,
        first_block=first,
        rank=lora.rank,
        learning_rate=latents.learning_rate,
        passes=latents.passes,
    )

    def new_head() -> RidgeHead:
        return RidgeHead(
            block_features.concat_width(backbone, blocks),
            **ridge.model_dump(include={"trace_ridge", "variance_ridge", "refit_fraction"}),
            device=context.compute.device,
        )

    return RetrainedBranch(
        training,
        new_head,
        LatentStore(latents.dtype, key=f"{context.seed}".encode()),
        LatentSchedule(latents.first_samples, rows),
        blocks=blocks,
        seed=context.seed,
    )


def _bytes_of_sample(context: LearnerContext, block: int, dtype: TokenDtype) -> int:
    """Return the bytes of the stored tokens of one image at a block's input."""
    backbone = context.backbone
    with torch.no_grad(), context.compute.autocast():
        tokens = backbone.stem(backbone.prepare([np.zeros((8, 8, 3), np.uint8)]))
        tokens = [tokens, *backbone.run(tokens, 0, block)][-1]
    return QuantisedTokens.of(tokens.float().cpu().numpy(), dtype).nbytes
