"""Commands that fetch data and weights, and export what a run has learned: fetch, export."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo
from streamcl.errors import ConfigError


@click.command()
@click.argument("names", nargs=-1)
def fetch(names: tuple[str, ...]) -> None:
    """Download data or weights by NAME; without one, list what there is and what must be had by hand."""
    from streams.download.fetch import CATALOGUE
    from streams.download.fetch import fetch as bring

    if not names:
        for entry in CATALOGUE:
            echo(f"{entry.name:16} {entry.kind:9} {entry.note} [{entry.licence}]")
        return
    for name in names:
        path = bring(name, _progress if sys.stderr.isatty() else None)
        if name in {"weights", "vit-s-focus"}:
            from streamcl.factory.backbone import fetched_weights

            path = fetched_weights(name)
        echo(str(path))


def _progress(name: str, done: int, total: int | None) -> None:
    share = f"{done / total:6.1%}" if total else f"{done / 2**20:8.1f} MB"
    click.echo(f"\r{name}: {share}", err=True, nl=done == total)


@click.command()
@click.argument("run", type=RUN)
@click.option(
    "--out", "folder", type=click.Path(path_type=Path), help="Where to write; RUN/adapter by default."
)
def export(run: Path, folder: Path | None) -> None:
    """Write RUN's adapters and head as a PEFT folder, and the merged backbone for timm."""
    from streamcl.runs.learner import export_learner, load_learner

    learner, config = load_learner(run)
    written = export_learner(learner, config, folder or run / "adapter")
    if not written:
        raise ConfigError(f"{run}: its learner has no adapters to export")
    for path in written:
        echo(str(path))
