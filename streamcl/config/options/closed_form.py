"""Options of the learners in closed form: heads on frozen features, without gradients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import WARN_ON_RESUME, BlockIndices, Options


class ClosedFormOptions(Options):
    """Features of a closed-form head, and when its weights are refitted."""

    blocks: BlockIndices | None = Field(
        None,
        description="Blocks whose tokens are the features, from 0; null: every second of the last eight.",
    )
    tta_views: Literal[1, 2] = Field(
        1, description="2: the mean over an image and its mirrored inner part; twice the cost."
    )
    refit_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Refit the weights used while learning once this share of the samples is new.",
        json_schema_extra=WARN_ON_RESUME,
    )
    projection: int | None = Field(
        None, ge=1, le=65_536, description="Random ReLU features on top; null: the features as they are."
    )


class RidgeOptions(ClosedFormOptions):
    """A closed-form ridge head on frozen features (RanPAC, arXiv 2307.02251)."""

    variance_ridge: float | None = Field(
        300.0,
        gt=0,
        le=1e9,
        description="Ridge of each feature: its variance times so many samples; null: trace_ridge.",
        json_schema_extra=WARN_ON_RESUME,
    )
    gcv_margin: float | None = Field(
        2.0,
        gt=0,
        le=1e9,
        description="variance_ridge grows where generalised cross-validation asks for more than so many "
        "times its value, as with wrong labels; null: never.",
        json_schema_extra=WARN_ON_RESUME,
    )
    trace_ridge: float = Field(
        1e-3,
        gt=0,
        le=1e6,
        description="Ridge where variance_ridge is null: a share of the mean of the Gram matrix's diagonal.",
        json_schema_extra=WARN_ON_RESUME,
    )


class RidgeLearnerOptions(RidgeOptions):
    """The ridge head alone: no gradients, exact forgetting."""

    name: Literal["ridge"] = Field("ridge", description="Closed form on frozen features.")


class NearestMeanOptions(Options):
    """The nearest class mean on frozen features (iCaRL's rule, arXiv 1611.07725): no gradients."""

    name: Literal["ncm"] = Field("ncm", description="Nearest class mean on frozen features.")
    blocks: BlockIndices | None = Field(
        None, description="Blocks whose tokens are the features, from 0; null: the last five."
    )
    metric: Literal["cosine", "euclid"] = Field("cosine", description="Distance to a class mean.")


class StreamingLDAOptions(ClosedFormOptions):
    """Streaming linear discriminant analysis on frozen features (arXiv 1909.01520): no gradients."""

    name: Literal["slda"] = Field("slda", description="Class means under one shared covariance.")
    shrinkage: float = Field(
        1e-2,
        gt=0,
        lt=1,
        description="Shrinkage of the covariance towards a multiple of the identity.",
        json_schema_extra=WARN_ON_RESUME,
    )
