"""The blocks and the head of an adapted branch, of whichever kind, by its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamcl.learners.factory import LearnerContext
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge_options import RidgeOptions

with lazy_imports():
    from streamcl.heads import ridge as ridge_head
    from streamcl.learners import block_features

if TYPE_CHECKING:
    from streamcl.heads.ridge import RidgeHead
    from streamcl.learners.adapted_branch import LoRABranchOptions

ADAPTED_BLOCKS = 3
"""Last of the blocks that the exact branch reads, which the adapted branch reads too."""


def blocks_of_branch(first: int, blocks: Sequence[int]) -> list[int]:
    """Return those of the exact branch's blocks that one with adapters from `first` on reads too."""
    return [block for block in blocks if block >= first][-ADAPTED_BLOCKS:]


def adapted_blocks_of(
    ridge: RidgeOptions, lora: LoRABranchOptions, context: LearnerContext
) -> tuple[int, list[int]]:
    """Return the first block with adapters, and those at or after it that the branch's head reads.

    Raises:
        ConfigError: the head reads none.
    """
    first = lora.first_adapted(context.backbone.depth)
    blocks = blocks_of_branch(first, context.blocks(ridge.blocks))
    if not blocks:
        raise context.refuse("learner.lora.first_block", f"the ridge head reads no block at or after {first}")
    return first, blocks


def build_head(ridge: RidgeOptions, blocks: Sequence[int], context: LearnerContext) -> RidgeHead:
    """Return a ridge head, without samples, on the tokens of some blocks."""
    return ridge_head.RidgeHead(
        block_features.concat_width(context.backbone, blocks),
        **ridge.model_dump(include={"trace_ridge", "variance_ridge", "refit_fraction", "defer_solve"}),
        device=context.compute.device,
        keeps_uncertainty=context.keeps_uncertainty,
    )
