"""Options of the learners in closed form: heads on frozen features, without gradients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import WARN, Blocks, Options


class ClosedFormOptions(Options):
    """The features of a closed-form head, and when its weights are solved anew."""

    blocks: Blocks | None = Field(
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
        description="Share of new samples at which predictions made while learning use new weights.",
        json_schema_extra=WARN,
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
        json_schema_extra=WARN,
    )
    gcv_margin: float | None = Field(
        2.0,
        gt=0,
        le=1e9,
        description="variance_ridge grows where generalised cross-validation asks for more than so many "
        "times its value, as with wrong labels; null: never.",
        json_schema_extra=WARN,
    )
    trace_ridge: float = Field(
        1e-3,
        gt=0,
        le=1e6,
        description="Ridge where variance_ridge is null: a share of the mean of the Gram matrix's diagonal.",
        json_schema_extra=WARN,
    )


class Ridge(RidgeOptions):
    """The ridge head alone: no gradients, exact forgetting."""

    name: Literal["ridge"] = Field("ridge", description="Closed form on frozen features.")


class NearestMean(Options):
    """The nearest class mean on frozen features (iCaRL's rule, arXiv 1611.07725): no gradients."""

    name: Literal["ncm"] = Field("ncm", description="Nearest class mean on frozen features.")
    blocks: Blocks | None = Field(
        None, description="Blocks whose tokens are the features, from 0; null: the last five."
    )
    metric: Literal["cosine", "euclid"] = Field("cosine", description="How nearness is measured.")


class StreamingLda(ClosedFormOptions):
    """Streaming linear discriminant analysis on frozen features (arXiv 1909.01520): no gradients."""

    name: Literal["slda"] = Field("slda", description="Class means under one shared covariance.")
    shrinkage: float = Field(
        1e-2,
        gt=0,
        lt=1,
        description="Shrinkage of the covariance towards a multiple of the identity.",
        json_schema_extra=WARN,
    )
