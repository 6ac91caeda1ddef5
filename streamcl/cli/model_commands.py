"""Commands that fetch data and use what a run has learned: fetch, predict, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import one_line, printable, say
from streamcl.errors import BadRecord, ConfigError


@click.command()
@click.argument("names", nargs=-1)
def fetch(names: tuple[str, ...]) -> None:
    """Download data or weights by NAME; without one, list what there is and what must be had by hand."""
    from streams.download.fetch import CATALOGUE
    from streams.download.fetch import fetch as bring

    if not names:
        for entry in CATALOGUE:
            say(f"{entry.name:16} {entry.kind:9} {entry.note} [{entry.licence}]")
        return
    for name in names:
        path = bring(name, _progress if sys.stderr.isatty() else None)
        if name in {"weights", "vit-s-focus"}:
            from streamcl.factory.backbone import fetched_weights

            path = fetched_weights(name)
        say(str(path))


def _progress(name: str, done: int, total: int | None) -> None:
    share = f"{done / total:6.1%}" if total else f"{done / 2**20:8.1f} MB"
    click.echo(f"\r{name}: {share}", err=True, nl=done == total)


@click.command()
@click.argument("run", type=RUN)
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(run: Path, images: tuple[Path, ...], as_json: bool) -> int:
    """Name the class of each of IMAGES with the model that RUN has learned so far."""
    from streamcl.events import Sample
    from streamcl.runs.learner import load_learner
    from streams.user.images import ImageLimits, decode

    learner, _ = load_learner(run, fitted=True)

    samples, unread = [], 0
    for path in images:
        try:
            samples.append(Sample(str(path), decode(path, ImageLimits())))
        except BadRecord as error:
            say(one_line(f"streamcl: {path}: {error}"), err=True)
            unread += 1
    for sample, made in zip(samples, learner.predict(samples), strict=True):
        if as_json:
            say(json.dumps({"image": sample.id, "class": made.label, "confidence": made.confidence}))
        else:
            name = "(no class)" if made.label is None else made.label
            say(f"{printable(sample.id)}\t{printable(name)}\t{made.confidence:.3f}")
    return BadRecord.exit_code if unread else 0


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
        say(str(path))
