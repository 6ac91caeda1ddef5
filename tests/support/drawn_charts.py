"""The charts of runs' reports, each kind of chart drawn once: most tests that end a run look at no chart."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest

Draw = Callable[[Any, Any], str]


def kind(curve: Any, size: Any) -> tuple[object, ...]:
    """What decides how a chart is drawn: its size, its name, and which parts and odd values it has."""
    points = [(each.offset, each.mean, each.low, each.high) for each in curve.points]
    numbers = [number for point in (*points, *curve.held_out) for number in point]
    odd = not all(math.isfinite(number) for number in numbers)
    parts = (points, curve.held_out, curve.end, *astuple(curve.marks))
    return size, curve.name, curve.share, odd, *map(bool, parts)


@functools.cache
def once(draw: Draw) -> Draw:
    """Return a function that draws one chart of each kind, and gives it again for the next of its kind."""
    drawn: dict[tuple[object, ...], str] = {}

    def draw_or_repeat(curve: Any, size: Any) -> str:
        known = kind(curve, size)
        if known not in drawn:
            drawn[known] = draw(curve, size)
        return drawn[known]

    return draw_or_repeat


def draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what draws the charts of a report, where something has imported it already."""
    page = sys.modules.get("streamcl.report.page")
    if page is not None:
        monkeypatch.setattr(page, "draw", once(page.draw))
