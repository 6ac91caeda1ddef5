"""Draws curves over the stream as SVG that takes its colours from the page: light, dark or paper."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from streamcl.report.series import Point

# Stand-ins for the page's custom properties: what matplotlib writes is replaced in the SVG by var(--name).
COLOURS = {
    "ink": "#010101",
    "quiet": "#010102",
    "rule": "#010103",
    "grid": "#010104",
    "stream": "#010105",
    "held_out": "#010106",
    "alarm": "#010107",
    "found": "#010108",
    "paper": "#010109",
}
CHART_STYLE = {
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, read aloud
    "svg.hashsalt": "streamcl",  # the same run gives the same bytes
    "font.size": 9.5,
    "text.parse_math": False,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["quiet"],
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["quiet"],
    "ytick.labelcolor": COLOURS["quiet"],
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class ChartSize:
    """Width and height in inches, the place of the axes in shares of them, and how much fits beside another.

    columns: of the legend, at most. ticks: at most, on the axis of the stream.
    """

    width: float
    height: float
    axes: tuple[float, float, float, float]
    columns: int
    ticks: int


WIDE = ChartSize(10.4, 3.3, (0.055, 0.145, 0.915, 0.70), 6, 10)
NARROW = ChartSize(5.0, 3.9, (0.105, 0.12, 0.84, 0.62), 2, 4)
"""For a screen of some 360 pixels, on which its text has the size of the page's notes."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Offsets of shifts, detections, consolidations, requests, and of batches with new classes."""

    true: Sequence[int] = ()
    found: Sequence[int] = ()
    false: Sequence[int] = ()
    consolidations: Sequence[int] = ()
    requests: Sequence[int] = ()
    classes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """A value over the stream, with held-out points and marks."""

    name: str
    points: Sequence[Point]
    share: bool  # a share in [0, 1], drawn from 0 to 100 %
    held_out: Sequence[tuple[int, float]] = ()
    end: int = 0
    marks: Marks = field(default_factory=Marks)


def draw(curve: Curve, size: ChartSize = WIDE) -> str:
    """Return the curve as an <svg> element, without text from the run and without a style attribute."""
    with mpl.rc_context(CHART_STYLE):
        figure = Figure(figsize=(size.width, size.height))
        FigureCanvasSVG(figure)
        axes = figure.add_axes(size.axes)
        top = 1.0 if curve.share else _top(curve.points)
        _frame(axes, curve, top, size.ticks)
        _lines(axes, curve, top)
        _marks(axes, curve.marks, top)
        _legend(figure, axes, size)
        return _svg(figure)


def _top(points: Sequence[Point]) -> float:
    """The 99.5 % quantile of the highs, as rare peaks would flatten everything else."""
    highs = [point.high for point in points]
    return 1.08 * float(np.quantile(highs, 0.995)) or 1.0 if highs else 1.0


def _frame(axes: Any, curve: Curve, top: float, ticks: int) -> None:
    axes.set_xlim(0, max(curve.end, 1))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=3, width=0.8)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0] if curve.share else MaxNLocator(4).tick_values(0, top))
    if curve.share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set_ylim(0, top * 1.12)  # the marks of detections have the last tenth to themselves
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("images passed", fontsize=9, loc="right", labelpad=1)


def _lines(axes: Any, curve: Curve, top: float) -> None:
    if curve.points:
        x = [point.offset for point in curve.points]
        if not curve.share:
            low, high = [p.low for p in curve.points], [min(p.high, top) for p in curve.points]
            axes.fill_between(x, low, high, color=COLOURS["stream"], alpha=0.18, linewidth=0)
        y = [min(point.mean, top) for point in curve.points]
        axes.plot(x, y, color=COLOURS["stream"], linewidth=1.6, label=curve.name)
    if curve.held_out:
        x, y = [offset for offset, _ in curve.held_out], [value for _, value in curve.held_out]
        size = 5 if len(x) <= 60 else 2.5
        line = {"linewidth": 1.0, "marker": "o", "markersize": size, "markeredgewidth": 0.8}
        colour = {"color": COLOURS["held_out"], "markeredgecolor": COLOURS["paper"]}
        axes.plot(x, y, label="held-out accuracy", clip_on=False, zorder=3, **line, **colour)


def _marks(axes: Any, marks: Marks, top: float) -> None:
    many = max(1.0, len(marks.true) / 40)  # lines thin out before they become a wall
    dashes = {"colors": COLOURS["quiet"], "linestyles": (0, (4, 3)), "linewidth": 1.0 / math.sqrt(many)}
    if marks.true:
        axes.vlines(list(marks.true), 0, top * 1.12, label="true shift", zorder=1, **dashes)
    high = top * 1.075
    for name, offsets, y, zorder, marker, size, face, edge in (
        ("detected shift", marks.found, high, 4, "v", 7, "alarm", "alarm"),
        ("false alarm", marks.false, high, 4, "v", 7, "paper", "alarm"),
        ("request to forget", marks.requests, high, 5, "X", 8, "ink", "paper"),
        ("new class", _thinned(marks.classes), 0.0, 4, "^", 7, "stream", "paper"),
        ("consolidation", marks.consolidations, 0.0, 4, "D", 6, "found", "paper"),
    ):
        if offsets:
            look = {"marker": marker, "markersize": size, "linestyle": "none", "clip_on": False}
            colours = {"markerfacecolor": COLOURS[face], "markeredgecolor": COLOURS[edge]}
            axes.plot(list(offsets), [y] * len(offsets), label=name, zorder=zorder, **look, **colours)


def _thinned(offsets: Sequence[int], limit: int = 60) -> Sequence[int]:
    """Return the offsets, or every second, third, ... where there are more than can be told apart."""
    return offsets[:: math.ceil(len(offsets) / limit) or 1]


def _legend(figure: Any, axes: Any, size: ChartSize) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        left = size.axes[0] - 0.1 / size.width  # the legend begins where the axis does
        rows = -(-len(handles) // size.columns)
        columns = -(-len(handles) // rows)
        place = {"loc": "upper left", "bbox_to_anchor": (left, 1.02), "ncols": columns}
        figure.legend(handles, labels, fontsize=9.5, handlelength=1.8, columnspacing=1.6, **place)


def _svg(figure: Any) -> str:
    page = io.StringIO()
    figure.savefig(page, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = page.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[\w.]+?_\d+"', "", text)  # the same in every chart, and nothing refers to them
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    text = re.sub(r' style="([^"]*)"', _attributes, text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _attributes(style: re.Match[str]) -> str:
    """Return a style attribute as attributes of its own: a strict content security policy allows these.

    The font's family is left to the page.
    """
    pairs = (each.partition(":") for each in style.group(1).split(";"))
    found = {name.strip(): value.strip() for name, _, value in pairs if value}
    found.pop("font-family", None)
    return "".join(f' {name}="{value}"' for name, value in found.items())
