"""Fills the table of a suite cell by cell, and writes what there is after each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcl import files
from streamcl.bench.cell import Shared, finished, run_cell
from streamcl.bench.results import Result, as_csv, as_markdown, results_of
from streamcl.bench.suite import Cell, Suite
from streamcl.errors import ConfigError, RunBusy, StreamclError
from streamcl.report.comparison import Comparison, write_comparison

Tell = Callable[[str], None]


@dataclass(slots=True)
class Table:
    """What a suite has come to: results, why cells have none, and the first error of a cell that failed."""

    results: list[Result] = field(default_factory=list)
    open_cells: dict[str, str] = field(default_factory=dict)
    failure: StreamclError | None = None


def fill_table(suite: Suite, cells: Sequence[Cell], out: Path, tell: Tell) -> Table:
    """Run every cell that has no summary yet; write results.md and results.csv into `out`, plots at the end.

    A cell that lacks its data, or that another process is running, is passed over with a word; one that fails
    is named in the results, and the others go on.
    """
    files.make_folder(out)
    table, shared = Table(), Shared()
    table.open_cells = {cell.id: "not run yet" for cell in cells}
    done = {cell.id: summary for cell in cells if (summary := finished(cell)) is not None}
    for number, cell in enumerate(cells, 1):
        summary = done.get(cell.id) or _attempt(cell, shared, table, tell)
        if summary is None:
            tell(f"[{number}/{len(cells)}] {cell.id}: {table.open_cells[cell.id]}")
            continue
        del table.open_cells[cell.id]
        table.results += results_of(cell, summary)
        tell(f"[{number}/{len(cells)}] {cell.id}: {_in_short(summary)}{', as before' * (cell.id in done)}")
        if cell.id not in done:
            write_tables(suite, table, out)
    write_tables(suite, table, out)
    write_plots(table, out)
    return table


def write_tables(suite: Suite, table: Table, out: Path) -> None:
    """results.csv and results.md."""
    files.atomic_write(out / "results.csv", as_csv(table.results).encode())
    files.atomic_write(out / "results.md", as_markdown(suite, table.results, table.open_cells).encode())


def write_plots(table: Table, out: Path) -> None:
    """Final accuracies as results.svg and results.png."""
    if table.results:
        shown = [Comparison(r.stream, r.learner, r.figures["A_Last"]) for r in table.results]
        write_comparison(shown, "accuracy at the end of the stream, classes seen", out / "results")


def _attempt(cell: Cell, shared: Shared, table: Table, tell: Tell) -> dict[str, Any] | None:
    """The cell's summary, or None with the reason noted in the table."""
    if cell.missing is not None:
        table.open_cells[cell.id] = f"skipped: {cell.missing} is not here"
        return None
    try:
        return run_cell(cell, shared, tell)
    except RunBusy:
        table.open_cells[cell.id] = "another process is running it"
    except ConfigError:
        raise
    except StreamclError as error:
        table.failure = table.failure or error
        table.open_cells[cell.id] = f"failed: {error}"
    return None


def _in_short(summary: Mapping[str, Any]) -> str:
    holdout = summary["holdout"]
    shown = [f"{name} {100 * holdout[name]:.1f} %" for name in ("A_T", "A_Last") if holdout[name] is not None]
    return ", ".join([*shown, f"{summary['timing']['seconds']:.0f} s"])
