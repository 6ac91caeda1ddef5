"""streamcl bench: learners compared over the streams of a suite."""

from __future__ import annotations

from pathlib import Path

import click

from streamcl.cli.help import FullHelpGroup
from streamcl.cli.messages import show_messages
from streamcl.cli.terminal import echo


@click.group(cls=FullHelpGroup)
def bench() -> None:
    """Measure learners against one another."""


@bench.command()
@click.option("--suite", "name", required=True, metavar="NAME|FILE", help="A shipped suite or a YAML file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where cells and results go.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Seeds in place of the suite's number.")
@click.option(
    "--filter",
    "pattern",
    default="*",
    metavar="PATTERN",
    help="Cells whose source/protocol/learner/seed-N fits.",
)
@click.option("--jobs", default=1, type=click.IntRange(1, 256), help="Cells at a time, a process each.")
@click.option("--list", "just_list", is_flag=True, help="Name the cells and run none.")
def accuracy(*, name: str, out: Path, seeds: int | None, pattern: str, jobs: int, just_list: bool) -> int:
    """Fill a table of learners x protocols x seeds; the same command continues an interrupted one.

    Writes results.md and results.csv after every cell, plots at the end. On a CPU as many jobs as cores take
    the least time, as each computes on its share of them. Several such commands may fill one table together.
    """
    from streamcl.benchmark.suite import cells, load_suite

    suite = load_suite(name)
    chosen = cells(suite, out, seeds=seeds, pattern=pattern)
    if just_list:
        for cell in chosen:
            echo(f"{cell.id}{f'  (needs {cell.missing})' if cell.missing else ''}")
        return 0
    from streamcl.benchmark.table import fill_table

    with show_messages(prefix=""):
        table = fill_table(suite, chosen, out, jobs=jobs)
    echo(f"{len(table.results)} results in {out / 'results.md'}")
    if table.failure is not None:
        echo(f"streamcl: a cell failed: {table.failure}", err=True)
        return table.failure.exit_code
    return 0
