"""Runs the cells of a suite and writes the table of results after each of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcl.benchmark.cells import read_summary, run_cells
from streamcl.benchmark.results import CellResult, as_csv, as_markdown, results_of
from streamcl.benchmark.suite import Cell, Suite
from streamcl.errors import StreamclError
from streamcl.report.comparison import LearnerFigure, write_comparison
from streamcl.storage import files

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ResultsTable:
    """Results of a suite, the reasons why cells have none, and the first error of a failed cell."""

    results: list[CellResult] = field(default_factory=list)
    open_cells: dict[str, str] = field(default_factory=dict)
    failure: StreamclError | None = None


def fill_table(suite: Suite, cells: Sequence[Cell], out: Path, *, jobs: int = 1) -> ResultsTable:
    """Run every cell that has no summary yet; write results.md and results.csv into `out`, plots at the end.

    A cell without its data, or one that another process is running, is skipped; one that fails is named in
    the results, and the others go on. jobs: number of worker processes.
    """
    files.make_folder(out)
    table = ResultsTable(open_cells={cell.id: "not run yet" for cell in cells})
    done = {cell.id: summary for cell in cells if (summary := read_summary(cell)) is not None}
    found = {cell.id: results_of(cell, done[cell.id]) for cell in cells if cell.id in done}
    waiting = [cell for cell in cells if cell.id not in done]
    for name, summary in done.items():
        del table.open_cells[name]
        logger.info("%s: %s, as before", name, _in_short(summary))
    table.results = _in_order(cells, found)
    for number, (cell, came) in enumerate(run_cells(waiting, jobs), len(done) + 1):
        place = f"[{number}/{len(cells)}] {cell.id}"
        table.failure = table.failure or came.failure
        if came.summary is None:
            table.open_cells[cell.id] = came.reason
            logger.info("%s: %s", place, came.reason)
            continue
        del table.open_cells[cell.id]
        found[cell.id] = results_of(cell, came.summary)
        table.results = _in_order(cells, found)
        logger.info("%s: %s", place, _in_short(came.summary))
        write_tables(suite, table, out)
    write_tables(suite, table, out)
    if table.results:
        shown = [LearnerFigure(r.stream, r.learner, r.figures["A_Last"]) for r in table.results]
        write_comparison(shown, "accuracy at the end of the stream, classes seen", out / "results")
    return table


def write_tables(suite: Suite, table: ResultsTable, out: Path) -> None:
    """Write results.csv and results.md."""
    files.atomic_write(out / "results.csv", as_csv(table.results).encode())
    files.atomic_write(out / "results.md", as_markdown(suite, table.results, table.open_cells).encode())


def _in_order(cells: Sequence[Cell], found: Mapping[str, Sequence[CellResult]]) -> list[CellResult]:
    return [result for cell in cells for result in found.get(cell.id, ())]


def _in_short(summary: Mapping[str, Any]) -> str:
    holdout = summary["holdout"]
    shown = [f"{name} {100 * holdout[name]:.1f} %" for name in ("A_T", "A_Last") if holdout[name] is not None]
    return ", ".join([*shown, f"{summary['timing']['seconds']:.0f} s"])
