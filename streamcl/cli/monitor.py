"""streamcl watch: shows a run in the browser while it goes on, or afterwards."""

from __future__ import annotations

from pathlib import Path

import click

from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo
from streamcl.errors import MissingExtra


@click.command("watch")
@click.argument("run", type=RUN)
@click.option("--host", default="127.0.0.1", show_default=True, help="An address of this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: a free one.")
def monitor(run: Path, host: str, port: int) -> None:
    """Show RUN on a page in the browser, which is kept up to date while the run goes on.

    The run may be carried out by another process, or be over. Its directory is only read. SIGTERM or Ctrl-C
    end this command, and leave the run alone.
    """
    try:
        from streamcl.serving.page.monitor import monitor_run
    except ImportError as error:
        hint = "pip install streamcl[serve]"
        raise MissingExtra(f"streamcl watch needs the package {error.name}", hint=hint) from error
    monitor_run(run, host, port, lambda url: echo(f"watch {run} on {url}"))
