"""Options of forgetting: scheduled requests, stored statistics, tests for relapse."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from streamcl.config.options.base import Options, Safe
from streamcl.requests.terms import Name, Offset, RequestTerms


class ForgetRequestOptions(RequestTerms, Options):
    """A request to forget, executed at an offset of the stream."""

    model_config = ConfigDict(populate_by_name=True)

    offset: Offset = Field(0, description="Executed before the first batch at or past it.")
    label: Name | None = Field(None, alias="class", description="A class, all of it.")


class ForgettingOptions(Options):
    """Scheduled requests, statistics stored for exact forgetting, and tests for relapse."""

    keep_statistics: Literal["per_class", "per_subject"] | None = Field(
        None,
        description="Store sums on disk for each class or each subject, which can then be forgotten exactly "
        "without their samples; null: none. For ridge, slda and ridge_lora.",
    )
    on_relapse: Safe[Literal["repeat", "report", "ignore"]] = Field(
        "repeat",
        description="After a shift, erased classes and subjects are tested for relapse: repeat the erasure, "
        "report it only, or do not test.",
    )
    max_replay: Safe[int] = Field(
        10_000,
        ge=0,
        le=10**12,
        description="Records that an erasure may learn again from a checkpoint older than the samples, which "
        "is exact for learners trained by gradient; 0: never.",
    )
    requests: Safe[list[ForgetRequestOptions]] = Field(
        [], max_length=10_000, description="Requests to forget at offsets of the stream."
    )
