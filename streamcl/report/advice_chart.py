"""Draws candidates by latency and accuracy, with those that no other surpasses, as an SVG of its own."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from streamcl.report.comparison import COMPARISON_STYLE, GRID, QUIET
from streamcl.storage import files

SERIES_COLOURS = ("#23507f", "#b3561a", "#2d7550", "#7a4a8f", "#a8243c", "#5b636d")
"""Of the series, in their order; they begin anew where there are more."""


class CandidatePoint(NamedTuple):
    """One candidate: its latency in milliseconds, its accuracy with the standard error, in per cent.

    series: candidates of one colour, such as those of one image size. on_front: no other surpasses it.
    is_chosen: it is the one to take. label: beside the point, where it is on the front.
    """

    milliseconds: float
    accuracy: float
    error: float
    series: str
    label: str
    on_front: bool
    is_chosen: bool


def write_advice_chart(points: Sequence[CandidatePoint], limit: float, path: Path) -> None:
    """Write the chart as SVG; the same values give the same bytes.

    Args:
        points: all candidates.
        limit: of the latency, in milliseconds; infinite: none.
        path: of the file.
    """
    page = io.BytesIO()
    with mpl.rc_context(COMPARISON_STYLE):
        _figure(points, limit).savefig(page, format="svg", facecolor="white", metadata={"Date": None})
    files.atomic_write(path, page.getvalue())


def _figure(points: Sequence[CandidatePoint], limit: float) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    _frame(axes, [point.milliseconds for point in points])
    for number, name in enumerate(dict.fromkeys(point.series for point in points)):
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        own = [point for point in points if point.series == name]
        for on_front in (False, True):
            _dots(axes, [point for point in own if point.on_front == on_front], name, colour)
    front = sorted(point for point in points if point.on_front)
    axes.plot(
        [p.milliseconds for p in front], [p.accuracy for p in front], color=QUIET, linewidth=0.8, zorder=1
    )
    for point in front:
        place: dict[str, Any] = {
            "xytext": (4, -9),
            "textcoords": "offset points",
            "fontsize": 7,
            "color": QUIET,
        }
        axes.annotate(point.label, (point.milliseconds, point.accuracy), **place)
    for point in points:
        if point.is_chosen:
            ring: dict[str, Any] = {
                "marker": "o",
                "markersize": 13,
                "markerfacecolor": "none",
                "color": "#a8243c",
            }
            axes.plot(point.milliseconds, point.accuracy, linestyle="none", label="to take", **ring)
    if math.isfinite(limit):
        axes.axvline(limit, color="#a8243c", linewidth=0.9, linestyle=(0, (4, 3)), label="limit")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _frame(axes: Any, milliseconds: Sequence[float]) -> None:
    axes.set_xlabel("ms for one image, alone", fontsize=9)
    axes.set_ylabel("% of images predicted correctly, each left out", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    steps = [digit * 10**power for power in range(-2, 6) for digit in (1, 2, 5)]
    low, high = min(milliseconds), max(milliseconds)
    axes.set_xticks([step for step in steps if low / 2 <= step <= high * 2])
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _dots(axes: Any, points: Sequence[CandidatePoint], name: str, colour: str) -> None:
    if not points:
        return
    on_front = points[0].on_front
    look: dict[str, Any] = {
        "fmt": "o",
        "markersize": 5 if on_front else 3,
        "color": colour,
        "alpha": 1.0 if on_front else 0.45,
    }
    look |= {"elinewidth": 0.8 if on_front else 0.0, "label": name if on_front else None}
    x, y = [point.milliseconds for point in points], [point.accuracy for point in points]
    axes.errorbar(x, y, yerr=[point.error for point in points], **look)
