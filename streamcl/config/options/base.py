"""The base class of all blocks of options, the marks of their fields, and types of fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

Value = TypeVar("Value")
Safe: TypeAlias = Annotated[Value, Field(json_schema_extra={"x-on-resume": "safe"})]
Warn: TypeAlias = Annotated[Value, Field(json_schema_extra={"x-on-resume": "warn"})]
"""Types of options that may change when a run is resumed (see `streamcl.config.options`)."""

Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
BlockIndex: TypeAlias = Annotated[int, Field(ge=0, lt=512)]
ViewCount: TypeAlias = Annotated[
    Literal[1, 2, 4],
    Field(
        description="Views of an image that features are the mean over, a forward pass each. 2: itself and "
        "its mirrored inner part; 4: also the mirrored image and the inner part."
    ),
]
Args: TypeAlias = dict[str, JsonValue]

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = r"^([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)$"
MAX_SECONDS = 10**9  # seconds, some 30 years: what is longer is a slip


def _in_units(
    value: Any,
    pattern: str,
    number: Callable[[str], float],
    units: Mapping[str, float],
    error: PydanticCustomError,
) -> Any:
    """Return a text that fits the pattern as its number times its unit; other values unchanged.

    Args:
        value: a text, or anything else.
        pattern: has the number and the unit as groups.
        number: of a text.
        units: their factors, by name.
        error: raised for a text that does not fit.
    """
    if not isinstance(value, str):
        return value
    if (found := re.fullmatch(pattern, value.strip())) is None:
        raise error
    return number(found[1]) * units[found[2]]


def seconds(value: Any) -> Any:
    """Return the seconds of a duration such as "2s", "500ms", "10m", "1h" or "7d"; other values unchanged.

    >>> seconds("2s"), seconds("500ms"), seconds("7d"), seconds(3)
    (2.0, 0.5, 604800.0, 3)
    """
    error = PydanticCustomError("duration", "is no duration; write 2s, 500ms, 10m, 1h or 7d, or seconds")
    return _in_units(value, DURATION, float, UNITS, error)


Seconds: TypeAlias = Annotated[
    float,
    Field(ge=0, le=MAX_SECONDS),
    BeforeValidator(seconds),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": DURATION}]}),
]
"""A duration: a number of seconds, or a number with its unit."""

BYTES = {"B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30}
SIZE = r"^([0-9]+)\s*(B|kB|MB|GB)$"


def size(value: Any) -> Any:
    """Return the bytes of a size such as "64MB" or "1GB"; other values unchanged.

    >>> size("64MB"), size("512 kB"), size(4096)
    (67108864, 524288, 4096)
    """
    error = PydanticCustomError("size", "is no size; write 64MB, 512kB or 1GB, or bytes")
    return _in_units(value, SIZE, int, BYTES, error)


Size: TypeAlias = Annotated[
    int,
    Field(ge=0, le=2**50),
    BeforeValidator(size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": SIZE}]}),
]
"""Bytes: a number, or a number with its unit (powers of 1,024)."""

PERCENTAGE = r"^([0-9]+(?:\.[0-9]+)?)\s*%$"
MAX_SHARE = 0.5


def share(value: Any) -> Any:
    """Return the share of a percentage such as "5%"; numbers unchanged.

    >>> share("5%"), share("2.5 %"), share(0.1)
    (0.05, 0.025, 0.1)
    """
    if isinstance(value, str) and (found := re.fullmatch(PERCENTAGE, value.strip())):
        return float(found[1]) / 100
    if isinstance(value, str):
        raise PydanticCustomError("share", "is no share; write 5% or 0.05")
    return value


Share: TypeAlias = Annotated[
    float,
    Field(ge=0, le=MAX_SHARE),
    BeforeValidator(share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": MAX_SHARE},
                {"type": "string", "pattern": PERCENTAGE},
            ]
        }
    ),
]
"""A share of at most a half: a number, or a percentage."""

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
