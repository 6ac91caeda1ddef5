"""Makes stores of latents, and ridge_lora with one."""

from __future__ import annotations

import functools

import numpy as np
import torch

from streamcl.learners.adapted_branch import LoRABranchOptions
from streamcl.learners.branch_parts import adapted_blocks_of, build_head
from streamcl.learners.factory import LearnerContext
from streamcl.learners.latent_options import LatentReplayOptions, StoredTokensOptions
from streamcl.learners.latent_ridge_lora import LatentRidgeLoRALearner
from streamcl.learners.latent_training import LatentTraining
from streamcl.learners.retrained_branch import RetrainedBranch
from streamcl.learners.ridge import build_ridge
from streamcl.learners.ridge_lora_options import LatentOptions
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.memory.latent_replay import LatentReplay
from streamcl.memory.latent_store import LatentSchedule, LatentStore
from streamcl.memory.quantised_tokens import QuantisedTokens, TokenDtype

STORED_SEGMENT_BYTES = 4 << 20
"""Mean bytes of stored tokens in a file, and about as many as are in memory."""
MAX_SEGMENTS = 64
"""Files of a store that is full, in the mean; a large store has larger ones."""
PREDICTED_VIEWS = 2
"""Views that the adapted branch predicts from, where the frozen one reads as many."""


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
    first, blocks = adapted_blocks_of(ridge, lora, context)
    predicted = min(PREDICTED_VIEWS, ridge.tta_views)
    views = min(latents.views, predicted)
    store, rows = build_store(latents, first, context, views=views)
    training = LatentTraining(
        backbone=context.backbone,
        compute=context.compute,
        first_block=first,
        rank=lora.rank,
        learning_rate=latents.learning_rate,
        passes=latents.passes,
        views=views,
    )

    in_stream = ridge.model_copy(update={"defer_solve": None})  # a head that is filled anew is solved once
    return RetrainedBranch(
        training,
        functools.partial(build_head, in_stream, blocks, context),
        store,
        LatentSchedule(latents.first_samples, rows),
        blocks=blocks,
        predicted_views=predicted,
        share=latents.share,
        seed=context.seed,
    )


def build_latent_replay(latents: LatentReplayOptions, block: int, context: LearnerContext) -> LatentReplay:
    """Return an empty store of tokens at a block's input, to draw from.

    Raises:
        ConfigError: no block before it stays frozen, there are several ranks, or no sample fits.
    """
    if not block:
        why = "tokens at the first block are hardly less than pixels: set first_block or last_blocks"
        raise context.refuse("learner.latents", why)
    if context.group.world_size > 1:
        raise context.refuse("learner.latents", "this learner stores latents in one process only")
    return LatentReplay(*build_store(latents, block, context))


def build_store(
    latents: StoredTokensOptions, block: int, context: LearnerContext, *, views: int = 1
) -> tuple[LatentStore, int]:
    """Return an empty store of tokens at a block's input, and the number of samples for which it has room.

    Args:
        latents: its options.
        block: whose input is stored.
        context: of the learner.
        views: of a sample, whose tokens are stored side by side.

    Raises:
        ConfigError: there is room for none.
    """
    size = views * _bytes_of_sample(context, block, latents.dtype)
    rows = latents.budget // size
    if not rows:
        raise context.refuse("learner.latents.budget", "not even one sample's tokens fit into it")
    store = LatentStore(
        latents.dtype,
        key=f"{context.seed}".encode(),
        segment_rows=max(rows // MAX_SEGMENTS, STORED_SEGMENT_BYTES // size, 1),
        folder=context.folder,
    )
    return store, rows


def _bytes_of_sample(context: LearnerContext, block: int, dtype: TokenDtype) -> int:
    """Return the bytes of the stored tokens of one image at a block's input."""
    backbone = context.backbone
    with torch.no_grad(), context.compute.autocast():
        tokens = backbone.stem(backbone.prepare([np.zeros((8, 8, 3), np.uint8)]))
        tokens = [tokens, *backbone.run(tokens, 0, block)][-1]
    return QuantisedTokens.of(tokens.float().cpu().numpy(), dtype).nbytes
