"""Makes the learners in closed form: ridge, nearest class mean and discriminant analysis."""

from __future__ import annotations

from typing import Any

from streamcl.config.options.closed_form import NearestMeanOptions, RidgeOptions, StreamingLDAOptions
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.heads.ncm import NCMHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.learners.block_features import concat_width, spread_blocks
from streamcl.learners.ridge import RidgeLearner
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

RIDGE_SHARPNESS = 10.0


def build_closed_form(
    config: RunConfig,
    options: RidgeOptions | StreamingLDAOptions | NearestMeanOptions,
    backbone: Backbone,
    compute: Compute,
    group: ProcessGroup,
) -> RidgeLearner[Any]:
    """A head on frozen features, knowing nothing yet."""
    blocks = read_blocks(config, options.blocks, backbone)
    width = concat_width(backbone, blocks)
    if isinstance(options, NearestMeanOptions):
        nearest = NCMHead(width, metric=options.metric, device=compute.device)
        return RidgeLearner(backbone, compute, nearest, blocks=blocks, group=group)
    shared: Any = {
        **options.model_dump(include={"projection", "refit_fraction"}),
        "seed": config.seed,
        "device": compute.device,
    }
    if isinstance(options, StreamingLDAOptions):
        head: RidgeHead = SLDAHead(width, shrinkage=options.shrinkage, **shared)
        sharpness = 1.0  # discriminants are log-likelihood ratios already
    else:
        ridge = options.model_dump(include={"variance_ridge", "gcv_margin", "trace_ridge"})
        head, sharpness = RidgeHead(width, **ridge, **shared), RIDGE_SHARPNESS
    return RidgeLearner(
        backbone, compute, head, blocks=blocks, tta_views=options.tta_views, sharpness=sharpness, group=group
    )


def read_blocks(config: RunConfig, named: list[int] | None, backbone: Backbone) -> list[int]:
    """The blocks whose tokens are the features: those named, or a spread of the last."""
    blocks = named or spread_blocks(backbone.depth)
    if max(blocks) >= backbone.depth:
        raise config.refuse(
            "learner.blocks", f"block {max(blocks)} does not exist; there are {backbone.depth}"
        )
    return blocks
