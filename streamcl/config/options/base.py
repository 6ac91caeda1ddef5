"""The base class of all blocks of options, the marks of their fields, and types of fields."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

Value = TypeVar("Value")
Safe: TypeAlias = Annotated[Value, Field(json_schema_extra={"x-on-resume": "safe"})]
Warn: TypeAlias = Annotated[Value, Field(json_schema_extra={"x-on-resume": "warn"})]
"""Types of options that may change when a run is resumed (see `streamcl.config.options`)."""

Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
BlockIndex: TypeAlias = Annotated[int, Field(ge=0, lt=512)]
Args: TypeAlias = dict[str, JsonValue]

IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
"""Pattern of the import path of a callable, package.module:callable."""


class Options(BaseModel):
    """Options that refuse unknown keys, conversions between types, NaN and infinity, and later changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def distinct(items: list[Any] | None) -> list[Any] | None:
    """Return the items unchanged. Raise an error of pydantic's where one is listed twice."""
    repeated = [item for i, item in enumerate(items or ()) if item in (items or ())[:i]]
    if repeated:
        raise PydanticCustomError("repeated", "{item} is listed twice", {"item": repeated[0]})
    return items


BlockIndices: TypeAlias = Annotated[list[BlockIndex], Field(min_length=1), AfterValidator(distinct)]
"""Indices of transformer blocks, at least one, none of them twice."""
