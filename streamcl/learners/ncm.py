"""The nearest class mean on frozen features: no gradients, exact forgetting by subtraction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from streamcl.config.options.base import BlockIndices, Options
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import RidgeLearner

with lazy_imports():
    from streamcl.heads import ncm as ncm_head
    from streamcl.learners import block_features

if TYPE_CHECKING:
    from streamcl.heads.ncm import ClassSums


class NearestMeanOptions(Options):
    """The nearest class mean on frozen features (iCaRL's rule, arXiv 1611.07725): no gradients."""

    name: Literal["ncm"] = Field("ncm", description="Nearest class mean on frozen features.")
    blocks: BlockIndices | None = Field(
        None,
        description="Blocks whose tokens are the features, from 0; null: every second of the last eight.",
    )
    metric: Literal["cosine", "euclid"] = Field("cosine", description="Distance to a class mean.")


def build_ncm(options: NearestMeanOptions, context: LearnerContext) -> RidgeLearner[ClassSums]:
    """Return a closed-form learner whose head keeps class means."""
    blocks = context.blocks(options.blocks)
    width, device = block_features.concat_width(context.backbone, blocks), context.compute.device
    head = ncm_head.NCMHead(width, metric=options.metric, device=device)
    return RidgeLearner(context.backbone, context.compute, head, blocks=blocks, group=context.group)


NCM = LearnerFactory(NearestMeanOptions, build_ncm, distributed=True)
