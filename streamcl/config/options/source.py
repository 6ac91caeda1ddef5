"""Options of the source, and the policy for malformed records."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import IMPORT_PATH, Args, Options, Safe, Seconds, Warn
from streamcl.config.options.spool import SpoolOptions


class SourcePolicy(Options):
    """Handling of malformed records, and limits on the source."""

    on_bad_record: Literal["quarantine", "fail"] = Field(
        "quarantine",
        description="A malformed record: set it aside and go on, or stop the run.",
    )
    missing_label: Literal["unlabelled", "quarantine", "fail"] = Field(
        "unlabelled",
        description="A record without a label: predict but do not learn it, set it aside, or stop.",
    )
    negative_label: Literal["quarantine", "fail", "class"] = Field(
        "quarantine",
        description="A negative integer label: set it aside, stop, or take it as a class of its own.",
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=2**31,
        description="Largest image, in pixels; read from the header before decoding.",
    )
    max_side: int = Field(20_000, ge=1, le=2**20, description="Longest side of an image, in pixels.")
    max_file_bytes: int = Field(64 * 2**20, ge=1, le=2**32, description="Largest image file, in bytes.")
    max_classes: int = Field(100_000, ge=1, le=10**7, description="Largest number of classes in the stream.")
    max_quarantined: int | None = Field(
        10_000, ge=0, le=10**9, description="Records set aside before the run stops; null: no limit."
    )
    stall_timeout: Safe[Literal["auto"] | Seconds | None] = Field(
        "auto",
        description="A source without a record for that long has failed; null: wait; auto: 300 s for a "
        "source that says how long it is, no limit for others: a camera may see nothing for a night.",
    )
    retries: Safe[int] = Field(3, ge=0, le=1000, description="Retries after the source has raised.")
    retry_delay: Safe[float] = Field(
        0.5, ge=0, le=3600, description="Seconds before the first retry; doubled for each further one."
    )


class SourceOptions(Options):
    """Where the stream comes from: exactly one of a registered `name` or a `class` of your own."""

    model_config = ConfigDict(
        json_schema_extra={
            "type": ["object", "string"],
            "anyOf": [{"required": ["name"]}, {"required": ["class"]}],
            "not": {
                "type": "object",
                "required": ["name", "class"],
                "properties": {"name": {"type": "string"}, "class": {"type": "string"}},
            },
        }
    )

    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A registered source; `streamcl list sources` shows them.",
    )
    class_: str | None = Field(
        None,
        alias="class",
        pattern=IMPORT_PATH,
        examples=["package.module:callable"],
        description="A callable of yours that returns an iterable of samples or batches.",
    )
    args: Args = Field({}, description="Keyword arguments for the source.")
    columns: dict[str, str] | None = Field(
        None,
        examples=[{"image": "img", "label": "fine_label"}],
        description="For a class of yours that yields mappings: its keys for image, label, id, subject, "
        "domain, privacy.",
    )
    deterministic: bool = Field(
        False,
        description="A promise that the class yields the same records each time; then any iterable can be "
        "resumed, by reading again what was read.",
    )
    policy: Warn[SourcePolicy] = Field(SourcePolicy(), description="Bad records, limits, retries.")
    spool: SpoolOptions | None = Field(
        None,
        description="On disk before learning: makes a source that cannot go back exactly once from there on; "
        "for live sources and for a class of yours. mqtt and push always have one.",
    )
    prefetch: Safe[int] = Field(2, ge=0, le=1024, description="Batches read ahead of learning; 0: none.")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceOptions:
        if (self.name is None) == (self.class_ is None):
            raise PydanticCustomError("origin", "needs exactly one of 'name' and 'class'")
        return self
