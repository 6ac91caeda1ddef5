"""Streaming linear discriminant analysis on frozen features: no gradients, exact forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from streamcl.config.options.base import Warn
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import RidgeLearner, build_closed_form
from streamcl.learners.ridge_options import ClosedFormOptions

with lazy_imports():
    from streamcl.heads import slda as slda_head

if TYPE_CHECKING:
    from streamcl.heads.statistics import Statistics


class StreamingLDAOptions(ClosedFormOptions):
    """Streaming linear discriminant analysis on frozen features (arXiv 1909.01520): no gradients."""

    name: Literal["slda"] = Field("slda", description="Class means under one shared covariance.")
    shrinkage: Warn[float] = Field(
        1e-2, gt=0, lt=1, description="Shrinkage of the covariance towards a multiple of the identity."
    )


def build_slda(options: StreamingLDAOptions, context: LearnerContext) -> RidgeLearner[Statistics]:
    """Return a closed-form learner whose scores are discriminants, log-likelihood ratios up to a constant."""
    return build_closed_form(options, context, slda_head.SLDAHead, sharpness=1.0)


SLDA = LearnerFactory(StreamingLDAOptions, build_slda, distributed=True, keeps_statistics=True)
