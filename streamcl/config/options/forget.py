"""Options of forgetting: requests in the file, and what is kept for requests."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from streamcl.config.options.base import SAFE, Options
from streamcl.events import Name, Offset, RequestTerms


class ForgetRequestOptions(RequestTerms, Options):
    """A request to forget that falls due at an offset of the stream."""

    model_config = ConfigDict(populate_by_name=True)

    offset: Offset = Field(0, description="Carried out before the first batch at or past it.")
    label: Name | None = Field(None, alias="class", description="A class, all of it.")


class ForgettingOptions(Options):
    """Requests to forget, and what is kept for them."""

    keep_statistics: Literal["per_class", "per_subject"] | None = Field(
        None,
        description="Sums kept on disk for each class or each subject, which can then be forgotten exactly "
        "without their samples; null: none. For ridge, slda and ridge_lora.",
    )
    on_relapse: Literal["repeat", "report", "ignore"] = Field(
        "repeat",
        description="Where a test after a shift shows that something erased has come back: erase it again, "
        "only report it, or do not test.",
        json_schema_extra=SAFE,
    )
    requests: list[ForgetRequestOptions] = Field(
        [],
        max_length=10_000,
        description="Requests to forget at offsets of the stream.",
        json_schema_extra=SAFE,
    )
