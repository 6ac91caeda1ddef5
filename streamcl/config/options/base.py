"""What all blocks of options share: how strict they are, the marks of their fields, and the types in them."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

SAFE: dict[str, JsonValue] = {"x-on-resume": "safe"}
WARN: dict[str, JsonValue] = {"x-on-resume": "warn"}

Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Block: TypeAlias = Annotated[int, Field(ge=0, lt=512)]
Args: TypeAlias = dict[str, JsonValue]

DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
"""The dotted path of a callable, package.module:callable."""


class Options(BaseModel):
    """Options that refuse unknown keys, conversions between types, NaN and infinity, and later changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def distinct(items: list[Any] | None) -> list[Any] | None:
    """The items as they are, where none is listed twice."""
    repeated = [item for i, item in enumerate(items or ()) if item in (items or ())[:i]]
    if repeated:
        raise PydanticCustomError("repeated", "{item} is listed twice", {"item": repeated[0]})
    return items


Blocks: TypeAlias = Annotated[list[Block], Field(min_length=1), AfterValidator(distinct)]
"""Blocks of a backbone, at least one, none of them twice."""
