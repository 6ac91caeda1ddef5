"""Options of learners with a closed-form head on frozen features."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import BlockIndices, Options, ViewCount, Warn


class FrozenFeatureOptions(Options):
    """Features of a closed-form head, and when its weights are refitted."""

    blocks: BlockIndices | None = Field(
        None,
        description="Blocks whose tokens are the features, from 0; null: every second of the last eight.",
    )
    tta_views: ViewCount = 1
    refit_fraction: Warn[float] = Field(
        0.1,
        ge=0,
        le=1,
        description="Refit the weights used while learning once this share of the samples is new; those of "
        "ridge regression take in new samples until then.",
    )
    defer_solve: Warn[int | None] = Field(
        None,
        ge=1,
        le=10**9,
        description="Refit in a thread beside the stream: the new weights come into use after so many more "
        "samples; null: the stream waits for them.",
    )


class ClosedFormOptions(FrozenFeatureOptions):
    """A closed-form head on frozen features, or on random ones of these."""

    projection: int | None = Field(
        None, ge=1, le=65_536, description="Random ReLU features on top; null: the features as they are."
    )


class RidgeOptions(ClosedFormOptions):
    """A closed-form ridge head on frozen features (RanPAC, arXiv 2307.02251)."""

    variance_ridge: Warn[float | None] = Field(
        300.0,
        gt=0,
        le=1e9,
        description="Ridge of each feature: its variance times so many samples; null: trace_ridge.",
    )
    gcv_margin: Warn[float | None] = Field(
        2.0,
        gt=0,
        le=1e9,
        description="variance_ridge grows where generalised cross-validation asks for more than so many "
        "times its value, as with wrong labels; null: never.",
    )
    trace_ridge: Warn[float] = Field(
        1e-3,
        gt=0,
        le=1e6,
        description="Ridge where variance_ridge is null: a share of the mean of the Gram matrix's diagonal.",
    )
    robust_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share, in what is learned of an image, of a view of it with noise, blur, compression or "
        "more light, such as 0.1; a forward pass more while learning, none when predicting. null: no view.",
    )


class RidgeLearnerOptions(RidgeOptions):
    """The ridge head alone: no gradients, exact forgetting."""

    name: Literal["ridge"] = Field("ridge", description="Closed form on frozen features.")
