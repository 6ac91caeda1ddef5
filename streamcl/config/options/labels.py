"""Options of labels that come after their records."""

from __future__ import annotations

from pydantic import Field

from streamcl.config.options.base import Options, Seconds, Warn


class LabelOptions(Options):
    """The store in which records wait for labels that come later, joined by their ids."""

    wait: Warn[Seconds | None] = Field(
        86_400.0,
        description="A record whose label has not come within that time (24h, 30m) leaves the store; null: "
        "it stays while there is room. By the clock of a live source, or of `scenario.rate`.",
    )
    max_waiting: Warn[int] = Field(
        10_000, ge=1, le=10**8, description="Records that wait at most; beyond, the oldest leaves."
    )
    max_bytes: Warn[int] = Field(
        2**28,
        ge=1,
        le=2**40,
        description="Bytes of their pixels, compressed without loss; beyond, the oldest leave. The store is "
        "part of every checkpoint.",
    )
