"""Options of the spool in front of a source that cannot go back."""

from __future__ import annotations

from pydantic import Field

from streamcl.config.options.base import Options, Safe, Seconds

MEGABYTE = 2**20


class SpoolOptions(Options):
    """Records are on disk before they are learned, and for some time after: exactly once from there on."""

    path: str = Field(
        "spool",
        min_length=1,
        max_length=4096,
        description="Its folder, of this run alone; relative to the run directory.",
    )
    keep: Safe[Seconds] = Field(
        7 * 86_400.0, description="How long a record stays after it was learned, such as 7d or 12h."
    )
    max_bytes: Safe[int] = Field(
        10 * 1024 * MEGABYTE,
        ge=16 * MEGABYTE,
        description="Its largest size; learned records go earlier where it is reached, and the source waits "
        "where none of those is left.",
    )
    recent_ids: Safe[int] = Field(
        100_000,
        ge=0,
        le=10**7,
        description="A record whose id is one of so many before it is a repetition, and is dropped; 0: none.",
    )
