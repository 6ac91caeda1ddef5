"""The part of a record that a tracking service is given: its numbers by name, and an event's reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOT_FIGURES = ("kind", "step", "offset")


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a metrics record as "kind/name", of parts and classes one level deeper.

    >>> figures({"kind": "step", "offset": 64, "loss": 0.5, "classes": {"ant": 1}, "reason": "words"})
    {'step/loss': 0.5, 'step/classes/ant': 1.0}
    """
    kind = str(record.get("kind", "metrics"))
    found: dict[str, float] = {}
    for name, value in record.items():
        inner = value if isinstance(value, Mapping) else {None: value}
        for part, number in inner.items():
            plain = isinstance(number, int | float) and not isinstance(number, bool)
            if plain and name not in NOT_FIGURES and math.isfinite(number):
                found["/".join(str(word) for word in (kind, name, part) if word is not None)] = float(number)
    return found


def message(record: Mapping[str, Any]) -> str:
    """Return an event in words: where it happened and why.

    >>> message({"kind": "shift", "offset": 640, "reason": "the loss rose"})
    'shift at offset 640: the loss rose'
    """
    return (
        f"{record.get('kind')} at offset {record.get('offset')}: {record.get('reason') or 'no reason given'}"
    )
