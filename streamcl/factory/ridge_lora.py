"""Makes the learners that join a closed form and adapters: ridge_lora, mixed_privacy and cohort_adapters."""

from __future__ import annotations

import hashlib

from streamcl.config.options.ridge_lora import CohortAdaptersOptions, MixedPrivacyOptions, RidgeLoRAOptions
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.factory.closed_form import RIDGE_SHARPNESS, build_closed_form, read_blocks
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.user_weights import UserWeights
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import FrozenReader, concat_width
from streamcl.learners.cohort_adapters import CohortAdaptersLearner, CohortRule
from streamcl.learners.mixed_privacy import MixedPrivacyLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.learners.tangent_features import TangentReader
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

ADAPTED_BLOCKS = 3
"""Last of the blocks that the exact branch reads, which the adapted branch of ridge_lora reads too."""


def build_ridge_lora(
    config: RunConfig,
    options: RidgeLoRAOptions | MixedPrivacyOptions,
    backbone: Backbone,
    compute: Compute,
    group: ProcessGroup,
) -> RidgeLoRALearner:
    """The closed form with an adapted branch beside it, where its options leave room for one."""
    exact = build_closed_form(config, options.ridge, backbone, compute, group)
    if options.lora.warmup_samples == 0:
        return RidgeLoRALearner(exact, None)
    return RidgeLoRALearner(exact, _branch(config, options, backbone, compute, config.seed, group=group))


def build_mixed_privacy(
    config: RunConfig, options: MixedPrivacyOptions, backbone: Backbone, compute: Compute
) -> MixedPrivacyLearner:
    """A ridge_lora learner that core samples train, with a part for users on top."""
    core, users = build_ridge_lora(config, options, backbone, compute, SINGLE_PROCESS), options.users
    tangents = None
    if core.adapted is not None and users.tangents:
        tangents = TangentReader(
            core.adapted, width=users.tangents, linearised_blocks=users.linearised_blocks, seed=config.seed
        )
    frozen = concat_width(backbone, [max(read_blocks(config, options.ridge.blocks, backbone))])
    weights = UserWeights(
        1 + frozen + (0 if tangents is None else tangents.width),
        variance_ridge=users.variance_ridge,
        noise=users.noise,
        refit_fraction=options.ridge.refit_fraction,
        max_tracked_subjects=users.max_tracked_subjects,
        device=compute.device,
    )
    return MixedPrivacyLearner(core, weights, tangents, frozen=frozen)


def build_cohort_adapters(
    config: RunConfig, options: CohortAdaptersOptions, backbone: Backbone, compute: Compute
) -> CohortAdaptersLearner:
    """A shared closed form, and a maker of adapters, one for each cohort."""
    ridge, lora = options.ridge, options.lora
    blocks = read_blocks(config, ridge.blocks, backbone)
    if ridge.variance_ridge is None or ridge.projection is not None:
        raise config.refuse("learner.ridge", "cohort adapters need a variance_ridge, and no projection")

    def branch(cohort: str) -> AdaptedBranch:
        digest = hashlib.sha256(f"{config.seed} {cohort}".encode()).digest()
        return _branch(config, options, backbone, compute, int.from_bytes(digest[:7], "big"))

    branch("")  # what is wrong with the options shows now
    return CohortAdaptersLearner(
        FrozenReader(backbone, compute, blocks, tta_views=ridge.tta_views),
        CohortRule(options.cohort_by, options.records_per_cohort, options.max_adapters),
        branch,
        width=concat_width(backbone, blocks),
        cut=backbone.depth // 3 if lora.first_block is None else lora.first_block,
        variance_ridge=ridge.variance_ridge,
        refit_fraction=ridge.refit_fraction,
        sharpness=RIDGE_SHARPNESS,
    )


def _branch(
    config: RunConfig,
    options: RidgeLoRAOptions | MixedPrivacyOptions | CohortAdaptersOptions,
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
        trace_ridge=ridge.trace_ridge,
        variance_ridge=ridge.variance_ridge,
        refit_fraction=ridge.refit_fraction,
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
        warmup_samples=lora.warmup_samples,
        seed=seed,
        group=group,
    )
