"""Results of a suite: figures by cell, their mean and standard deviation, as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from streamcl.benchmark.suite import Cell, CellKey, Suite

FIGURES = ("A_T", "A_AUC", "A_Last", "forgetting_measure", "backward_transfer", "prequential")
HEADINGS = ("A_T", "A_AUC", "A_Last", "forgetting", "backward transfer", "prequential")
SHIFTS = ("true_shifts", "found", "false_alarms")
CSV_COLUMNS = (
    "source",
    "protocol",
    "learner",
    "seed",
    *FIGURES,
    *SHIFTS,
    "samples",
    "seconds",
    "images_per_s",
)


@dataclass(frozen=True, slots=True)
class CellResult(CellKey):
    """The figures of one cell. Accuracies are shares in [0, 1]; None where a figure does not exist."""

    figures: Mapping[str, float | None]


def results_of(cell: Cell, summary: Mapping[str, Any]) -> list[CellResult]:
    """Return one result for a cell; two for the joint bound, one for each head."""
    made = [_result(cell, cell.learner, summary, summary["holdout"])]
    if "holdout_linear" in summary:
        made.append(_result(cell, f"{cell.learner}, linear head", summary, summary["holdout_linear"]))
    return made


def as_csv(results: Sequence[CellResult]) -> str:
    """Return a row for each result, with an empty field for a missing figure."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for each in results:
        own = (each.source, each.protocol, each.learner, each.seed)
        rest = (each.figures.get(name) for name in CSV_COLUMNS[len(own) :])
        writer.writerow([*own, *("" if value is None else round(value, 6) for value in rest)])
    return page.getvalue()


def as_markdown(suite: Suite, results: Sequence[CellResult], open_cells: Mapping[str, str]) -> str:
    """Return an overview of final accuracy, a table for each stream, and the cells without a result.

    open_cells: by cell id, the reason why it has no result.
    """
    lines = [f"# {suite.title}", "", *([suite.about.strip(), ""] if suite.about else [])]
    lines += [
        "Accuracies in per cent, mean ± standard deviation over seeds. A_T: mean over parts of the final "
        "accuracy among all classes; A_AUC: mean over evaluations of the accuracy on classes seen; A_Last: "
        "that at the end; prequential: every image predicted before it is learned. Forgetting and backward "
        "transfer in points.",
        "",
    ]
    lines += _overview(results)
    for stream in dict.fromkeys(each.stream for each in results):
        lines += ["", f"## {stream}", "", *_table([r for r in results if r.stream == stream])]
    if open_cells:
        lines += ["", "## Without a result", ""]
        lines += [f"- {cell}: {reason}" for cell, reason in open_cells.items()]
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: Iterable[float | None], scale: float = 100.0) -> str:
    """Return "53.1 ± 0.4" for shares in [0, 1], "53.1" for a single one, "-" for none."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.1f} ± {stdev(known):.1f}" if len(known) > 1 else f"{known[0]:.1f}"


def _result(cell: Cell, learner: str, summary: Mapping[str, Any], holdout: Mapping[str, Any]) -> CellResult:
    shifts, timing = summary.get("shifts", {}), summary["timing"]
    figures = {name: holdout.get(name) for name in FIGURES}
    figures["prequential"] = summary.get("prequential", {}).get("accuracy")
    figures |= {
        "true_shifts": len(shifts["true"]) if shifts else None,
        "found": shifts.get("found"),
        "false_alarms": shifts.get("false_alarms"),
        "samples": summary["samples"],
        "seconds": timing["seconds"],
        "images_per_s": timing["images_per_s"],
    }
    return CellResult(cell.source, cell.protocol, learner, cell.seed, figures)


def _overview(results: Sequence[CellResult]) -> list[str]:
    """Final accuracy over classes seen, learners x streams."""
    streams = list(dict.fromkeys(each.stream for each in results))
    lines = ["## A_Last", "", *_head("learner", streams)]
    for learner in dict.fromkeys(each.learner for each in results):
        own = [each for each in results if each.learner == learner]
        cells = [
            mean_and_deviation(r.figures["A_Last"] for r in own if r.stream == stream) for stream in streams
        ]
        lines.append(f"| {learner} | {' | '.join(cells)} |")
    return lines


def _table(results: Sequence[CellResult]) -> list[str]:
    lines = _head("learner", [*HEADINGS, "shifts found", "false alarms", "images/s", "seeds"])
    for learner in dict.fromkeys(each.learner for each in results):
        own = [each.figures for each in results if each.learner == learner]
        cells = [mean_and_deviation(figures[name] for figures in own) for name in FIGURES]
        shifts = f"{_plain(own, 'found', 1)} of {_plain(own, 'true_shifts', 1)}"
        cells += [shifts, _plain(own, "false_alarms", 1), _plain(own, "images_per_s", 0), str(len(own))]
        lines.append(f"| {learner} | {' | '.join(cells)} |")
    return lines


def _head(first: str, columns: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]


def _plain(own: Sequence[Mapping[str, float | None]], name: str, digits: int) -> str:
    known = [value for figures in own if (value := figures[name]) is not None]
    return f"{fmean(known):.{digits}f}" if known else "-"
