"""What one plain value of YAML means: 1.2's core schema, by which `on`, `yes` and dates are text."""

from __future__ import annotations

import math
import re

CORE = "tag:yaml.org,2002:"
"""What the core schema's tags begin with; `!!` for short."""

MAX_DIGITS = 64

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "null": (type(None),),
}
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+")
_RADIX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """What a plain scalar means in YAML 1.2's core schema. Raises ValueError for an absurdly long number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    whole, real = _INT.fullmatch(text), _FLOAT.fullmatch(text)
    radix, infinite = _RADIX.fullmatch(text), _INFINITE.fullmatch(text)
    if (whole or real or radix) and len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters; if it is text, quote it")
    if whole:
        return int(text)
    if radix:
        return int(text, 0)
    if real:
        return float(text)
    if infinite:
        return -math.inf if infinite[1] == "-" else math.inf
    return math.nan if text in {".nan", ".NaN", ".NAN"} else text


def resolve_as(kind: str, text: str) -> str | int | float | bool | None:
    """What a scalar with the core tag `!!kind` means. Raises ValueError where its text is not of it."""
    if kind == "str":
        return text
    value = resolve_scalar(text)
    if type(value) not in _TYPES[kind]:
        raise ValueError(f"{short(text)} is no !!{kind}")
    return float(value) if kind == "float" and value is not None else value


def is_scalar_tag(tag: str) -> bool:
    """Whether the core schema has this tag for scalars."""
    return tag.startswith(CORE) and tag.removeprefix(CORE) in _TYPES


def short(text: str) -> str:
    """As an error shows it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
