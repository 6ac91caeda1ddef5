"""streamcl run: a configuration in, a run directory and a report out, across interruptions."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from streamcl.cli.inspect_commands import OVERRIDES
from streamcl.cli.messages import disk_errors, show_messages
from streamcl.cli.terminal import echo
from streamcl.errors import EXIT_STOPPED

if TYPE_CHECKING:
    from streamcl.distributed.process_group import ProcessGroup
    from streamcl.runs.run import Run

logger = logging.getLogger(__name__)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--fresh", is_flag=True, help="Start over; an earlier run is moved aside, never deleted.")
@click.option(
    "--strict", is_flag=True, help="Refuse a damaged checkpoint instead of using the one before it."
)
@click.option("--follow", is_flag=True, help="Do not end with the source: go on with what is added to it.")
@click.option("--quiet", is_flag=True, help="No progress bar and no closing figures.")
def run(
    config: Path, overrides: tuple[str, ...], *, fresh: bool, strict: bool, follow: bool, quiet: bool
) -> int:
    """Run CONFIG, a YAML file; an interrupted run is continued where it stopped.

    `torchrun --nproc-per-node N -m streamcl run CONFIG` runs it on N ranks, one a GPU or a CPU core.
    """
    from streamcl.config.load import load_config

    settings = load_config(config, overrides)
    from streamcl.distributed.process_group import restarted
    from streamcl.runs.open import open_run  # imports torch: only for a configuration that stands

    with (
        _ranks(settings.distributed.timeout) as ranks,
        show_messages() if ranks.is_main else nullcontext(),
        disk_errors(),
    ):
        again = fresh and restarted()
        if again:
            logger.warning("torchrun has started the ranks again, so --fresh is ignored: the run continues")
        with open_run(
            settings, fresh=fresh and not again, strict=strict, follow=follow, group=ranks
        ) as opened:
            return _run(opened, quiet=quiet)


def _run(opened: Run, *, quiet: bool) -> int:
    """Run to the end or the stop; return the exit code."""
    leads = opened.group.is_main
    if opened.processor.progress.finished:
        logger.info("%s holds a finished run; its source has nothing new; --fresh starts over", opened.folder)
    else:
        with _stopping_gently(opened.stop):
            _drive(opened, show=leads and not quiet and sys.stderr.isatty())
        if opened.processor.stopped:
            offset = opened.processor.progress.offset
            logger.info("stopped at %d samples; the same command continues from there", offset)
            return EXIT_STOPPED
    if leads:
        from streamcl.report.overview import text_summary

        summary = opened.finish()
        if not quiet:
            echo(text_summary(summary, opened.folder / "report.html"))
    return 0


def _ranks(timeout: float) -> ProcessGroup:
    """Return this process alone, or the group that torchrun has started."""
    from streamcl.distributed.process_group import SINGLE_PROCESS, launched
    from streamcl.distributed.torch_process_group import TorchProcessGroup

    return TorchProcessGroup(timeout) if launched() else SINGLE_PROCESS


@contextmanager
def _stopping_gently(stop: Callable[[], None]) -> Iterator[None]:
    """At the first SIGTERM or SIGINT ask the loop to stop, at the second leave at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        stop()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: os._exit(EXIT_STOPPED))

    before = {each: signal.signal(each, on_signal) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _drive(opened: Run, *, show: bool) -> None:
    """Drive the run to its end or its stop, with a progress bar on a terminal."""
    if not show:
        for _ in opened:
            pass
        return
    from streamcl.cli.progress import run_with_progress

    run_with_progress(opened)
