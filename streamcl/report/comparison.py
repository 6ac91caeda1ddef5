"""Plots learners side by side, a panel for each stream: mean over seeds as a dot, range as a line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from streamcl.storage import files

COMPARISON_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "streamcl",
    "font.size": 9.0,
    "text.parse_math": False,
}
INK, QUIET, GRID = "#1f4e79", "#666666", "#dddddd"


class LearnerFigure(NamedTuple):
    """One value of one learner on one stream: a share in [0, 1]; None is left out."""

    stream: str
    learner: str
    value: float | None


def write_comparison(shown: Sequence[LearnerFigure], title: str, path: Path) -> None:
    """Write the panels to `path` with suffixes .svg and .png; the same values give the same SVG bytes."""
    with mpl.rc_context(COMPARISON_STYLE):
        figure = _figure([each for each in shown if each.value is not None], title)
        for ending, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 150})):
            page = io.BytesIO()
            figure.savefig(page, format=ending[1:], facecolor="white", **options)
            files.atomic_write(path.with_suffix(ending), page.getvalue())


def _figure(shown: Sequence[LearnerFigure], title: str) -> Figure:
    streams = list(dict.fromkeys(each.stream for each in shown))
    learners = list(dict.fromkeys(each.learner for each in shown))
    columns = min(3, max(1, len(streams)))
    rows = -(-len(streams) // columns) or 1
    height = 0.24 * len(learners) + 0.75
    figure = Figure(figsize=(1.4 + 3.0 * columns, 0.5 + height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for place, axes in enumerate(panels):
        if place < len(streams):
            own = [each for each in shown if each.stream == streams[place]]
            _panel(axes, own, learners, streams[place])
        else:
            axes.set_visible(False)
    figure.suptitle(title, fontsize=9.5, color=QUIET)
    return figure


def _panel(axes: Any, shown: Sequence[LearnerFigure], learners: Sequence[str], stream: str) -> None:
    axes.set_title(stream, fontsize=9, loc="left")
    axes.set_xlim(0, 100)
    axes.set_ylim(len(learners) - 0.5, -0.5)
    axes.set_yticks(range(len(learners)), learners)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", length=0, labelbottom=True)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter("{x:.0f} %")
    for row, learner in enumerate(learners):
        values = [100 * each.value for each in shown if each.learner == learner and each.value is not None]
        if not values:
            continue
        axes.plot([min(values), max(values)], [row, row], color=INK, linewidth=2.2, alpha=0.45)
        axes.plot(fmean(values), row, marker="o", markersize=5, color=INK)
        near = fmean(values) > 82  # write the figure on the side that has room
        gap = {"xytext": (-6 if near else 6, 0), "ha": "right" if near else "left"}
        text = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "color": QUIET}
        side = min(values) if near else max(values)
        axes.annotate(f"{fmean(values):.1f}", (side, row), **gap, **text)
