"""Makes the learners that join a closed form and adapters: hybrid, mixed privacy and cohorts."""

from __future__ import annotations

import hashlib

from streamcl.config.options.hybrid import CohortOptions, Hybrid, Mixed
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.factory.closed_form import RIDGE_SHARPNESS, build_closed_form, read_blocks
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.user_weights import UserWeights
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import FrozenReader, concat_width
from streamcl.learners.cohort_adapters import CohortAdaptersLearner, CohortRule
from streamcl.learners.hybrid import RidgeLoRALearner
from streamcl.learners.mixed_privacy import MixedPrivacyLearner
from streamcl.learners.tangent_features import TangentReader
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

ADAPTED_BLOCKS = 3
"""Last of the blocks that the exact branch reads, which the adapted branch of a hybrid reads too."""


def build_hybrid(
    config: RunConfig, options: Hybrid | Mixed, backbone: Backbone, compute: Compute, group: ProcessGroup
) -> RidgeLoRALearner:
    """The closed form with an adapted branch beside it, where its options leave room for one."""
    exact = build_closed_form(config, options.ridge, backbone, compute, group)
    if options.lora.adapt == 0:
        return RidgeLoRALearner(exact, None)
    return RidgeLoRALearner(exact, _branch(config, options, backbone, compute, config.seed, group=group))


def build_mixed(
    config: RunConfig, options: Mixed, backbone: Backbone, compute: Compute
) -> MixedPrivacyLearner:
    """A hybrid that core samples train, with a part for users on top."""
    core, users = build_hybrid(config, options, backbone, compute, SINGLE_PROCESS), options.users
    tangents = None
    if core.adapted is not None and users.tangents:
        tangents = TangentReader(core.adapted, width=users.tangents, blocks=users.blocks, seed=config.seed)
    frozen = concat_width(backbone, [max(read_blocks(config, options.ridge.blocks, backbone))])
    weights = UserWeights(
        1 + frozen + (0 if tangents is None else tangents.width),
        shrinkage=users.shrinkage,
        noise=users.noise,
        refresh=options.ridge.refresh,
        cohorts=users.cohorts,
        device=compute.device,
    )
    return MixedPrivacyLearner(core, weights, tangents, frozen=frozen)


def build_cohorts(
    config: RunConfig, options: CohortOptions, backbone: Backbone, compute: Compute
) -> CohortAdaptersLearner:
    """A shared closed form, and a maker of adapters, one for each cohort."""
    ridge, lora = options.ridge, options.lora
    blocks = read_blocks(config, ridge.blocks, backbone)
    if ridge.shrinkage is None or ridge.projection is not None:
        raise config.refuse("learner.ridge", "cohorts need a shrinkage, and no projection")

    def branch(cohort: str) -> AdaptedBranch:
        digest = hashlib.sha256(f"{config.seed} {cohort}".encode()).digest()
        return _branch(config, options, backbone, compute, int.from_bytes(digest[:7], "big"))

    branch("")  # what is wrong with the options shows now
    return CohortAdaptersLearner(
        FrozenReader(backbone, compute, blocks, views=ridge.views),
        CohortRule(options.by, options.stretch, options.limit),
        branch,
        width=concat_width(backbone, blocks),
        cut=backbone.depth // 3 if lora.first_block is None else lora.first_block,
        shrinkage=ridge.shrinkage,
        refresh=ridge.refresh,
        sharpness=RIDGE_SHARPNESS,
    )


def _branch(
    config: RunConfig,
    options: Hybrid | Mixed | CohortOptions,
    backbone: Backbone,
    compute: Compute,
    seed: int,
    *,
    group: ProcessGroup = SINGLE_PROCESS,
) -> AdaptedBranch:
    ridge, lora = options.ridge, options.lora
    first = backbone.depth // 3 if lora.first_block is None else lora.first_block
    blocks = [block for block in read_blocks(config, ridge.blocks, backbone) if block >= first][
        -ADAPTED_BLOCKS:
    ]
    if not blocks:
        raise config.refuse("learner.lora.first_block", f"no block of the ridge's comes at or after {first}")
    head = RidgeHead(
        concat_width(backbone, blocks),
        relative_lambda=ridge.relative_lambda,
        shrinkage=ridge.shrinkage,
        refresh=ridge.refresh,
        device=compute.device,
    )
    return AdaptedBranch(
        backbone,
        compute,
        head,
        blocks=blocks,
        first_block=first,
        rank=lora.rank,
        learning_rate=lora.learning_rate,
        steps=lora.steps,
        adapt=lora.adapt,
        seed=seed,
        group=group,
    )
