"""streamcl source: looks at the source of a configuration without taking anything from it."""

from __future__ import annotations

from pathlib import Path

import click

from streamcl.cli.help import FullHelpGroup
from streamcl.cli.inspect_commands import OVERRIDES
from streamcl.cli.terminal import printable


@click.group(cls=FullHelpGroup)
def source() -> None:
    """Look at the source of a configuration."""


@source.command("check")
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--wait", default=3.0, show_default=True, help="Seconds to wait for a record of a live source.")
def check(config: Path, overrides: tuple[str, ...], wait: float) -> None:
    """Show where the source of CONFIG, a YAML file, stands: position, lag, and the next record.

    The position is that of the newest checkpoint of the run. Nothing is advanced, acknowledged or written.
    The exit code is 3 where records after the position are gone.
    """
    from streamcl.config.load import load_config

    settings = load_config(config, overrides)
    from streamcl.runs.source_check import report_run_source

    found, checkpoint = report_run_source(settings, wait)
    where = "the beginning: there is no checkpoint" if checkpoint is None else str(checkpoint)
    remaining = "not known" if found.remaining is None else f"{found.remaining} records"
    lines = {
        "source": f"{found.name}, {'live' if found.live else 'finite'}",
        "delivery": found.guarantee,
        "position": f"offset {found.offset} ({where})",
        "lag" if found.live else "remaining": remaining,
        "next": found.next_record if found.fault is None else "cannot be read",
    }
    for name, text in lines.items():
        click.echo(f"{name:10} {printable(text)}")
    if found.fault is not None:
        raise found.fault
