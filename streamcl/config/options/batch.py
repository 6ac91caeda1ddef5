"""Options of how records are put into batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import Options, Safe, Seconds

DEFAULT_WAIT = 2.0
"""Seconds that a record of a live source waits for its batch, where the configuration does not say."""


LARGEST = 64
"""Records in a batch of a long stream, where the configuration does not say."""


class BatchOptions(Options):
    """How many records a batch has, and how long its first record waits for the others."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "integer"], "minimum": 1})

    size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Records per batch; null: half of the records that have passed, rounded down to a "
        "power of two, from 1 to 64; 64 where several ranks read shards.",
    )
    max_wait: Safe[Literal["auto"] | Seconds | None] = Field(
        "auto",
        description="A batch that is not full is learned once its first record has waited that long (2s, "
        "500ms); null: it waits until it is full or the stream ends; auto: 2s for live sources and for a "
        "class of yours that cannot be replayed, null for others.",
    )
    predict_at: Safe[Literal["batch", "arrival"]] = Field(
        "batch",
        description="When a record is predicted: with its batch, or as it comes; live sources only.",
    )

    @property
    def largest(self) -> int:
        """The records of a full batch once much of the stream has passed."""
        return LARGEST if self.size is None else self.size


def by_size() -> BeforeValidator:
    """Return a validator that expands a number to the block with that size."""

    def expand(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"size": value}
        if isinstance(value, Mapping | BatchOptions):
            return value
        raise PydanticCustomError("batch", "must be a number of records, or a block with size and max_wait")

    return BeforeValidator(expand)


class OverloadOptions(Options):
    """The behaviour of a live source whose records come faster than they can be learned."""

    name: Literal["wait", "predict_only", "sample"] = Field(
        "wait",
        description="wait: everything is learned, however late; predict_only: batches are predicted and not "
        "learned until fewer records wait; sample: one batch in `learn_one_in` is learned meanwhile.",
    )
    above: int = Field(1024, ge=1, le=10**9, description="Waiting records, here and at the broker.")
    learn_one_in: int = Field(4, ge=2, le=10**6, description="For sample.")
