"""Makes the learner of a run."""

from __future__ import annotations

from streamcl.config.options.closed_form import NearestMeanOptions, RidgeOptions, StreamingLDAOptions
from streamcl.config.options.online_lora import OnlineLoRAOptions
from streamcl.config.options.ridge_lora import CohortAdaptersOptions, MixedPrivacyOptions, RidgeLoRAOptions
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.factory.baselines import build_baseline
from streamcl.factory.closed_form import build_closed_form
from streamcl.factory.ridge_lora import build_cohort_adapters, build_mixed_privacy, build_ridge_lora
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streamcl.nn.low_pass_backprop import LowPass
from streamcl.protocols import Learner


def build_learner(
    config: RunConfig, backbone: Backbone, compute: Compute, group: ProcessGroup = SINGLE_PROCESS
) -> Learner:
    """The learner that the configuration names, knowing nothing yet; `ranks` learn each batch together."""
    options = config.learner
    if isinstance(options, OnlineLoRAOptions):
        return OnlineLoRALearner(
            backbone,
            compute,
            rank=options.rank,
            first_block=_first_block(config, options, backbone),
            low_pass=_low_pass(config, options, backbone),
            learning_rate=options.learning_rate,
            regularisation=options.regularisation,
            hard_buffer_size=options.hard_buffer_size,
            buffer_weight=options.buffer_weight,
            mask_absent=options.mask_absent,
            seed=config.seed,
            group=group,
        )
    if isinstance(options, RidgeOptions | StreamingLDAOptions | NearestMeanOptions):
        return build_closed_form(config, options, backbone, compute, group)
    if isinstance(options, RidgeLoRAOptions):
        return build_ridge_lora(config, options, backbone, compute, group)
    if isinstance(options, MixedPrivacyOptions):
        return build_mixed_privacy(config, options, backbone, compute)
    if isinstance(options, CohortAdaptersOptions):
        return build_cohort_adapters(config, options, backbone, compute)
    return build_baseline(options, backbone, compute, config.seed, group)


def _first_block(config: RunConfig, options: OnlineLoRAOptions, backbone: Backbone) -> int:
    if options.last_blocks is None:
        return options.first_block
    if options.last_blocks > backbone.depth:
        raise config.refuse("learner.last_blocks", f"{options.last_blocks} of {backbone.depth} blocks")
    return backbone.depth - options.last_blocks


def _low_pass(config: RunConfig, options: OnlineLoRAOptions, backbone: Backbone) -> LowPass | None:
    if (wanted := options.backprop.lbp_wht) is None:
        return None
    if backbone.grid is None:
        raise config.refuse("learner.backprop.lbp_wht", f"{backbone.name} has no one grid of patches")
    return LowPass(*backbone.grid, order=wanted.order)
