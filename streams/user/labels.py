"""Converts users' labels, ids and other short texts to the strings that samples carry."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from streamcl.errors import BadRecord, SourceError
from streamcl.requests.terms import canonical_name

MAX_NAME_LENGTH = 1024  # characters of a label, id, subject or domain
INT64_BOUND = 2**63  # integer labels have 64 bits


def to_label(
    value: Any,
    *,
    missing: Literal["unlabelled", "quarantine", "fail"],
    negative: Literal["quarantine", "fail", "class"],
    class_names: Sequence[str] = (),
) -> str | None:
    """Return the class's name: of an integer k `class_names[k]` where there are any, else str(k).

    Names that differ in blanks around them or in composed characters are one class (see `canonical_name`).
    None is a missing label. Raise BadRecord for anything else (bool, float, nested, too long), and
    SourceError where the policy says "fail".

    >>> policy = {"missing": "unlabelled", "negative": "class"}
    >>> to_label(1, class_names=["cat", "dog"], **policy), to_label(-1, **policy), to_label(None, **policy)
    ('dog', '-1', None)
    """
    value = scalar(value)
    if value is None:
        if missing != "unlabelled":
            error = SourceError if missing == "fail" else BadRecord
            raise error("record has no label", hint="missing_label: unlabelled would predict it only")
        return None
    if isinstance(value, str):
        return canonical_name(text(value, "label"))
    if isinstance(value, bool | np.bool_):
        raise BadRecord(f"label is the boolean {value}", hint="name the classes: int(label), or a string")
    if isinstance(value, numbers.Integral):
        return _from_integer(int(value), negative, class_names)
    hint = "labels are integers or strings, one a sample"
    if isinstance(value, numbers.Real):
        hint = "labels are classes, not quantities: use int(label); a missing label is None"
    elif isinstance(value, bytes):
        hint = "decode it first: label.decode()"
    elif isinstance(value, list | tuple) or getattr(value, "shape", None):
        hint = "one label a sample: of one-hot rows use argmax"
    raise BadRecord(f"label is a {type(value).__name__}: {brief(value)}", hint=hint)


def _from_integer(label: int, negative: str, class_names: Sequence[str]) -> str:
    if not -INT64_BOUND <= label < INT64_BOUND:
        raise BadRecord("label is an integer of more than 64 bits")
    if label < 0 and negative != "class":
        error = SourceError if negative == "fail" else BadRecord
        raise error(f"label is {label}", hint="negative_label: class would make it a class of its own")
    if label < 0 or not class_names:
        return str(label)
    if label >= len(class_names):
        raise BadRecord(f"label is {label}, but the source names {len(class_names)} classes")
    return class_names[label]


def to_text(value: Any, what: str) -> str | None:
    """Return an optional short text: a string, or an integer in digits. Raise BadRecord for anything else.

    >>> to_text(7, "id")
    '7'
    """
    value = scalar(value)
    if value is None:
        return None
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) < INT64_BOUND:
        return str(int(value))
    if isinstance(value, str):
        return text(value, what)
    raise BadRecord(
        f"{what} is a {type(value).__name__}: {brief(value)}", hint=f"{what} is a string or integer"
    )


def to_name(value: Any, what: str) -> str | None:
    """Return an optional name of a subject or domain in its one spelling (see `canonical_name`).

    >>> to_name("door ", "domain")
    'door'
    """
    found = to_text(value, what)
    return None if found is None else canonical_name(found)


def text(value: str, what: str) -> str:
    """Return the string. Raise BadRecord where it is blank, too long, or not valid Unicode."""
    if not value.strip():
        raise BadRecord(f"{what} is an empty string", hint="a missing one is None")
    if len(value) > MAX_NAME_LENGTH:
        raise BadRecord(f"{what} has {len(value)} characters; {MAX_NAME_LENGTH} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{what} {brief(value)} is not valid Unicode") from error
    return str(value)


def scalar(value: Any) -> Any:
    """Return the element of a 0-d array or tensor; anything else as it is.

    >>> scalar(np.array(3))
    3
    """
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return value.item()
    return value


def brief(value: Any) -> str:
    """Return a short text of anything, for messages; raise nothing.

    >>> brief([1, 2]), brief("x" * 99)[-5:]
    ('<list>', 'xx...')
    """
    shown = f"<{type(value).__name__}>"
    with suppress(ValueError):  # an integer with more digits than Python writes
        shown = ascii(value) if isinstance(value, str | int | float | bytes) else shown
    return shown if len(shown) <= 80 else shown[:77] + "..."
